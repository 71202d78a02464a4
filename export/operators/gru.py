"""GRU: all steps forward, and all steps backward. Shapes as in `export.operators.lstm`.

Gates in PyTorch's order r, z, n. The recurrent part of n has its own product, since r multiplies
it before the input's part is added. Backward, the gates as the recurrent weight sees them get
[dh, dh, dh] * p, and as the inputs' projection sees them [dh, dh, dh] * s.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from export.operators.recurrence import Body, Steps, order, stacked, translation, transposed


@torch.library.custom_op("fedtide::gru", mutates_args=())
def gru(
    xp_rz: Tensor,
    xp_n: Tensor,
    weight_rz: Tensor,
    weight_n: Tensor,
    bias_n: Tensor,
    h0: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Projected inputs xp_rz[t,b,2h] and xp_n[t,b,h], weights [2h,h] and [h,h], bias_n[h], h0[b,h].

    -> last h [b,h]; of each step: h[t,b,h], the h before it, p[t,b,3h], s[t,b,3h], z[t,b,h].
    """
    h = h0
    rows: Steps = []
    for t in order(xp_rz.shape[0], reverse):
        before = h
        r, z = (xp_rz[t] + h @ weight_rz.t()).sigmoid().chunk(2, 1)
        recurrent = h @ weight_n.t() + bias_n
        n = (xp_n[t] + r * recurrent).tanh()
        h = n + z * (before - n)
        to_n = (1 - z) * (1 - n * n)
        to_r, to_z = to_n * recurrent * r * (1 - r), (before - n) * z * (1 - z)
        p, s = torch.cat([to_r, to_z, to_n * r], 1), torch.cat([to_r, to_z, to_n], 1)
        rows.append((h, before, p, s, z))
    y, previous, p, s, z = stacked(rows, reverse)
    return h.clone(), y, previous, p, s, z


@gru.register_fake
def _(xp_rz: Tensor, xp_n: Tensor, weight_rz: Tensor, weight_n: Tensor, bias_n: Tensor, h0: Tensor, reverse: bool) -> Any:  # noqa: E501, ARG001  # fmt: skip
    factors = xp_n.new_empty(*xp_n.shape[:2], 3 * xp_n.shape[2])
    shapes = (h0, xp_n, xp_n, factors, factors, xp_n)
    return tuple(torch.empty_like(value) for value in shapes)


@torch.library.custom_op("fedtide::gru_backward", mutates_args=())
def gru_backward(
    dy: Tensor,
    p: Tensor,
    s: Tensor,
    z: Tensor,
    weight: Tensor,
    dh_n: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients dy[t,b,h] of each step's h, dh_n[b,h] of the last one; weight[3h,h].

    -> dh0[b,h]; of every step: dm[t,b,3h] of the gates as the recurrent weight sees them,
    dx[t,b,3h] as the projection of the inputs does.
    """
    dh = dh_n
    rows: Steps = []
    for t in order(dy.shape[0], not reverse):
        dh = dh + dy[t]
        three = torch.cat([dh, dh, dh], 1)
        dm = three * p[t]
        dh = dh * z[t] + dm @ weight
        rows.append((dm, three * s[t]))
    dm_all, dx_all = stacked(rows, not reverse)
    return dh.clone(), dm_all, dx_all


@gru_backward.register_fake
def _(dy: Tensor, p: Tensor, s: Tensor, z: Tensor, weight: Tensor, dh_n: Tensor, reverse: bool) -> Any:  # noqa: E501, ARG001  # fmt: skip
    return tuple(torch.empty_like(value) for value in (dh_n, p, s))


def _scan(node: onnx.NodeProto, used: set[str]) -> list[onnx.NodeProto]:
    xp_rz, xp_n, weight_rz, weight_n, bias_n, h0 = node.input
    one = f"{node.output[0]}.one"
    step = Body(node)
    h = step.state(h0)
    gates = step("Sigmoid", step("Gemm", h, weight_rz, step.stream(xp_rz), transB=1))
    r, z = step.split("Split", 2, gates, axis=1, num_outputs=2)
    recurrent = step("Gemm", h, weight_n, bias_n, transB=1)
    n = step("Tanh", step("Add", step.stream(xp_n), step("Mul", r, recurrent)))
    kept = step("Mul", z, step("Sub", h, n))
    new_h = step("Add", n, kept)
    rest = step("Sub", one, z)
    to_n = step("Sub", rest, step("Mul", rest, step("Mul", n, n)))
    to_m = step("Mul", to_n, r)
    product = step("Mul", to_m, recurrent)
    to_r = step("Sub", product, step("Mul", product, r))
    to_z = step("Sub", kept, step("Mul", kept, z))
    p = step("Concat", to_r, to_z, to_m, axis=1)
    s = step("Concat", to_r, to_z, to_n, axis=1)
    constant = helper.make_tensor(one, TensorProto.FLOAT, [], [1.0])
    return [
        helper.make_node("Constant", [], [one], value=constant),
        step.scan([new_h], [new_h, h, p, s, z], used),
    ]


def _backward_scan(node: onnx.NodeProto, used: set[str]) -> list[onnx.NodeProto]:
    dy, p, s, z, weight, dh_n = node.input
    step = Body(node, backward=True)
    dh = step("Add", step.state(dh_n), step.stream(dy))
    three = step("Concat", dh, dh, dh, axis=1)
    dm = step("Mul", three, step.stream(p))
    dx = step("Mul", three, step.stream(s))
    transpose, across = transposed(node, weight)
    new_dh = step("Gemm", dm, across, step("Mul", dh, step.stream(z)), transB=1)
    return [transpose, step.scan([new_dh], [dm, dx], used)]


TRANSLATIONS = {
    torch.ops.fedtide.gru.default: translation("Gru", 6, 6),
    torch.ops.fedtide.gru_backward.default: translation("GruBackward", 6, 3),
}
SCANS = {"Gru": _scan, "GruBackward": _backward_scan}
