"""Plain recurrent networks (tanh or ReLU). Shapes as in `export.operators.lstm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor

from export.operators.recurrence import Body, Steps, order, stacked, translation, transposed


@torch.library.custom_op("fedtide::rnn_tanh", mutates_args=())
def rnn_tanh(
    xp: Tensor, weight: Tensor, h0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Projected inputs xp[t,b,h], weight[h,h], h0[b,h].

    -> last h [b,h]; of each step: h[t,b,h], the h before it.
    """
    return _forward(xp, weight, h0, reverse, torch.tanh)


@torch.library.custom_op("fedtide::rnn_relu", mutates_args=())
def rnn_relu(
    xp: Tensor, weight: Tensor, h0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with max(0, x) instead of tanh(x)."""
    return _forward(xp, weight, h0, reverse, torch.relu)


def _forward(
    xp: Tensor, weight: Tensor, h0: Tensor, reverse: bool, activation: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    h = h0
    rows: Steps = []
    for t in order(xp.shape[0], reverse):
        before, h = h, activation(xp[t] + h @ weight.t())
        rows.append((h, before))
    y, previous = stacked(rows, reverse)
    return h.clone(), y, previous


@rnn_tanh.register_fake
@rnn_relu.register_fake
def _(xp: Tensor, weight: Tensor, h0: Tensor, reverse: bool) -> Any:  # noqa: ARG001
    return torch.empty_like(h0), torch.empty_like(xp), torch.empty_like(xp)


@torch.library.custom_op("fedtide::rnn_backward", mutates_args=())
def rnn_backward(
    dy: Tensor, slope: Tensor, weight: Tensor, dh_n: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients dy[t,b,h] of each step's h, dh_n[b,h] of the last one; slope[t,b,h].

    -> dh0[b,h], dz[t,b,h] of every step's argument of the activation.
    """
    dh = dh_n
    rows: Steps = []
    for t in order(dy.shape[0], not reverse):
        dz = (dh + dy[t]) * slope[t]
        dh = dz @ weight
        rows.append((dz,))
    return dh.clone(), stacked(rows, not reverse)[0]


@rnn_backward.register_fake
def _(dy: Tensor, slope: Tensor, weight: Tensor, dh_n: Tensor, reverse: bool) -> Any:  # noqa: ARG001
    return torch.empty_like(dh_n), torch.empty_like(slope)


def _scan(activation: str) -> Any:
    def scan(node: onnx.NodeProto, used: set[str]) -> list[onnx.NodeProto]:
        xp, weight, h0 = node.input
        step = Body(node)
        h = step.state(h0)
        new_h = step(activation, step("Gemm", h, weight, step.stream(xp), transB=1))
        return [step.scan([new_h], [new_h, h], used)]

    return scan


def _backward_scan(node: onnx.NodeProto, used: set[str]) -> list[onnx.NodeProto]:
    dy, slope, weight, dh_n = node.input
    step = Body(node, backward=True)
    dh = step("Add", step.state(dh_n), step.stream(dy))
    dz = step("Mul", dh, step.stream(slope))
    transpose, across = transposed(node, weight)
    return [transpose, step.scan([step("Gemm", dz, across, transB=1)], [dz], used)]


TRANSLATIONS = {
    torch.ops.fedtide.rnn_tanh.default: translation("RnnTanh", 3, 3),
    torch.ops.fedtide.rnn_relu.default: translation("RnnRelu", 3, 3),
    torch.ops.fedtide.rnn_backward.default: translation("RnnBackward", 4, 2),
}
SCANS = {"RnnTanh": _scan("Tanh"), "RnnRelu": _scan("Relu"), "RnnBackward": _backward_scan}
