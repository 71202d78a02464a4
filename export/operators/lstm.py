"""LSTM: all steps forward, and all steps backward.

t = steps, b = batch, h = hidden size; gates in PyTorch's order i, f, g, o; float32. A reversed
recurrence goes from the last step to the first; its tensors stay in the order of time.

Beside its results the forward pass emits factors from which the backward pass is few products:
d = dc + dh * q and dz = [d, d, d, dh] * p, with p = [g i(1-i), c' f(1-f), i(1-g²), tanh(c) o(1-o)]
for the previous state c' and q = o(1-tanh(c)²). On to the step before it go dz @ weight and d * f;
dz itself, four times as large, is no state, since onnxruntime copies a state that is emitted too.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from torch import Tensor

from export.operators.recurrence import Body, Steps, order, stacked, translation, transposed


@torch.library.custom_op("fedtide::lstm", mutates_args=())
def lstm(
    xp: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Projected inputs xp[t,b,4h], weight[4h,h], h0[b,h], c0[b,h].

    -> last h and c [b,h]; of each step: h[t,b,h], the h before it, p[t,b,4h], q[t,b,h], f[t,b,h].
    """
    h, c = h0, c0
    rows: Steps = []
    for t in order(xp.shape[0], reverse):
        before, c_before = h, c
        i, f, g, o = (xp[t] + h @ weight.t()).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = i * g + f * c
        tanh_c = c.tanh()
        h = o * tanh_c
        p = [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), h * (1 - o)]
        rows.append((h, before, torch.cat(p, 1), o - h * tanh_c, f))
    y, previous, factors, q, f = stacked(rows, reverse)
    return h.clone(), c.clone(), y, previous, factors, q, f


@lstm.register_fake
def _(xp: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, reverse: bool) -> Any:  # noqa: ARG001
    y = xp.new_empty(*xp.shape[:2], weight.shape[1])
    others = (torch.empty_like(value) for value in (h0, c0, y, y, xp, y, y))
    return tuple(others)


@torch.library.custom_op("fedtide::lstm_backward", mutates_args=())
def lstm_backward(
    dy: Tensor,
    p: Tensor,
    q: Tensor,
    f: Tensor,
    weight: Tensor,
    dh_n: Tensor,
    dc_n: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients dy[t,b,h] of each step's h, dh_n and dc_n [b,h] of the last states.

    -> dh0[b,h], dc0[b,h], dz[t,b,4h] of every step's gates.
    """
    dh, dc = dh_n, dc_n
    rows: Steps = []
    for t in order(dy.shape[0], not reverse):
        dh = dh + dy[t]
        d = dc + dh * q[t]
        dz = torch.cat([d, d, d, dh], 1) * p[t]
        dh, dc = dz @ weight, d * f[t]
        rows.append((dz,))
    return dh.clone(), dc.clone(), stacked(rows, not reverse)[0]


@lstm_backward.register_fake
def _(dy: Tensor, p: Tensor, q: Tensor, f: Tensor, weight: Tensor, dh_n: Tensor, dc_n: Tensor, reverse: bool) -> Any:  # noqa: E501, ARG001  # fmt: skip
    return torch.empty_like(dh_n), torch.empty_like(dc_n), torch.empty_like(p)


def _scan(node: onnx.NodeProto, used: set[str]) -> list[onnx.NodeProto]:
    xp, weight, h0, c0 = node.input
    step = Body(node)
    h, c = step.state(h0), step.state(c0)
    z = step("Gemm", h, weight, step.stream(xp), transB=1)
    zi, zf, zg, zo = step.split("Split", 4, z, axis=1, num_outputs=4)
    i, f, g, o = step("Sigmoid", zi), step("Sigmoid", zf), step("Tanh", zg), step("Sigmoid", zo)
    ig, fc = step("Mul", i, g), step("Mul", f, c)
    new_c = step("Add", ig, fc)
    tanh_c = step("Tanh", new_c)
    new_h = step("Mul", o, tanh_c)
    p = [
        step("Sub", ig, step("Mul", ig, i)),
        step("Sub", fc, step("Mul", fc, f)),
        step("Sub", i, step("Mul", ig, g)),
        step("Sub", new_h, step("Mul", new_h, o)),
    ]
    factors = step("Concat", *p, axis=1)
    q = step("Sub", o, step("Mul", new_h, tanh_c))
    return [step.scan([new_h, new_c], [new_h, h, factors, q, f], used)]


def _backward_scan(node: onnx.NodeProto, used: set[str]) -> list[onnx.NodeProto]:
    dy, p, q, f, weight, dh_n, dc_n = node.input
    step = Body(node, backward=True)
    later, dc = step.state(dh_n), step.state(dc_n)
    dh = step("Add", later, step.stream(dy))
    d = step("Add", dc, step("Mul", dh, step.stream(q)))
    dz = step("Mul", step("Concat", d, d, d, dh, axis=1), step.stream(p))
    new_dc = step("Mul", d, step.stream(f))
    transpose, across = transposed(node, weight)
    new_dh = step("Gemm", dz, across, transB=1)
    return [transpose, step.scan([new_dh, new_dc], [dz], used)]


TRANSLATIONS = {
    torch.ops.fedtide.lstm.default: translation("Lstm", 4, 7),
    torch.ops.fedtide.lstm_backward.default: translation("LstmBackward", 7, 3),
}
SCANS = {"Lstm": _scan, "LstmBackward": _backward_scan}
