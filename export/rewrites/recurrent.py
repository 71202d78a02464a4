"""Recurrent layers as products over all steps at once around a recurrence of few operators.

PyTorch's own decomposition unrolls the steps. Here the inputs of all steps are projected by one
product, the recurrence is an operator that becomes a Scan (`export.operators.scans`), and each
weight's gradient is one product over all steps.

t = steps, b = batch, i = input size, h = hidden size, n = 4h (LSTM), 3h (GRU) or h. A reversed
direction goes from the last step to the first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from export.operators.gru import gru, gru_backward
from export.operators.lstm import lstm, lstm_backward
from export.operators.rnn import rnn_backward, rnn_relu, rnn_tanh
from export.rewrites.nodes import insert, is_call

aten = torch.ops.aten


def rewrite(graph: fx.Graph) -> int:
    """LSTM, GRU and plain layers of [b,t,i] or [t,b,i], stacked, bidirectional, with dropout.

    Packed sequences and LSTMs with projections are left alone.
    """
    changed = 0
    for node in list(graph.nodes):
        layer = _layer(node)
        if layer is not None:
            _replace(graph, node, layer)
            changed += 1
    return changed


@dataclass(frozen=True)
class _Layer:
    """The arguments of a recurrent node; parameters and states by direction of a layer."""

    direction: Callable[..., tuple[Tensor, ...]]
    states: list[Any]
    parameters: list[tuple[Any, ...]]
    """Of each direction: w_ih[n,i], w_hh[n,h], and b_ih[n] and b_hh[n] or twice None."""
    dropout: float
    directions: int
    batch_first: bool


def _layer(node: fx.Node) -> _Layer | None:
    if not is_call(node, *_DIRECTIONS):
        return None
    arguments: tuple[Any, ...] = node.args
    _, states, parameters, biases, layers, dropout, train, bidirectional, batch_first = arguments
    directions = 2 if bidirectional else 1
    size = 4 if biases else 2
    if len(parameters) != size * layers * directions:
        return None
    filled = [
        (*parameters[k : k + size], *[None] * (4 - size)) for k in range(0, len(parameters), size)
    ]
    return _Layer(
        _DIRECTIONS[node.target],
        list(states) if isinstance(states, (list, tuple)) else [states],
        filled,
        dropout if train else 0.0,
        directions,
        bool(batch_first),
    )


def _replace(graph: fx.Graph, node: fx.Node, layer: _Layer) -> None:
    def call(function: Callable[..., Any], *arguments: Any) -> fx.Node:
        return insert(graph, node, function, *arguments)

    x: Any = call(aten.transpose.int, node.args[0], 0, 1) if layer.batch_first else node.args[0]
    lasts: list[list[fx.Node]] = [[] for _ in layer.states]
    for first in range(0, len(layer.parameters), layer.directions):
        if first > 0 and layer.dropout > 0:
            x = call(aten.dropout.default, x, layer.dropout, True)
        outputs = []
        for index in range(first, first + layer.directions):
            states = [call(aten.select.int, state, 0, index) for state in layer.states]
            parameters = layer.parameters[index]
            result = call(layer.direction, x, *states, *parameters, index > first)
            y, *ends = (call(operator.getitem, result, k) for k in range(1 + len(states)))
            outputs.append(y)
            for known, end in zip(lasts, ends, strict=True):
                known.append(end)
        x = outputs[0] if len(outputs) == 1 else call(aten.cat.default, outputs, 2)
    if layer.batch_first:
        x = call(aten.transpose.int, x, 0, 1)
    for user in list(node.users):
        output: Any = user.args[1]
        new = x if output == 0 else call(aten.stack.default, lasts[output - 1])
        user.replace_all_uses_with(new)
        graph.erase_node(user)
    graph.erase_node(node)


def lstm_direction(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, reverse: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x[t,b,i], h0 and c0 [b,h], weights and biases of a direction -> y[t,b,h], last h and c."""
    return _Lstm.apply(x, h0, c0, w_ih, w_hh, b_ih, b_hh, reverse)[:3]  # type: ignore[no-any-return,no-untyped-call]


def gru_direction(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, reverse: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x[t,b,i], h0[b,h], weights and biases of a direction -> y[t,b,h], last h."""
    return _Gru.apply(x, h0, w_ih, w_hh, b_ih, b_hh, reverse)[:2]  # type: ignore[no-any-return,no-untyped-call]


def tanh_direction(x: Tensor, h0: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """As `gru_direction`."""
    return _Rnn.apply(x, h0, *rest, False)[:2]  # type: ignore[no-any-return,no-untyped-call]


def relu_direction(x: Tensor, h0: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """As `gru_direction`."""
    return _Rnn.apply(x, h0, *rest, True)[:2]  # type: ignore[no-any-return,no-untyped-call]


_DIRECTIONS: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    aten.lstm.input: lstm_direction,
    aten.gru.input: gru_direction,
    aten.rnn_tanh.input: tanh_direction,
    aten.rnn_relu.input: relu_direction,
}


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, reverse):  # type: ignore[no-untyped-def]
        bias = None if b_ih is None else b_ih + b_hh
        h, c, y, *factors = lstm(_project(x, w_ih, bias), w_hh, h0, c0, reverse)
        return y, h, c, *factors

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, _, _, w_ih, w_hh, b_ih, _, ctx.reverse = inputs
        _, _, _, *factors = output
        ctx.biased = b_ih is not None
        ctx.mark_non_differentiable(*factors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w_ih, w_hh, *factors)

    @staticmethod
    def backward(ctx, dy, dh, dc, *_):  # type: ignore[no-untyped-def]
        x, w_ih, w_hh, previous, p, q, f = ctx.saved_tensors
        dy, dh, dc = _or_zeros(dy, previous), _or_zeros(dh, previous[0]), _or_zeros(dc, previous[0])
        dh0, dc0, dz = lstm_backward(dy, p, q, f, w_hh, dh, dc, ctx.reverse)
        dx, dw_ih, db = _projection_gradients(dz, x, w_ih, ctx.biased)
        dw_hh = _rows(dz).t() @ _rows(previous)
        return dx, dh0, dc0, dw_ih, dw_hh, db, db, None


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(x, h0, w_ih, w_hh, b_ih, b_hh, reverse):  # type: ignore[no-untyped-def]
        size = 2 * h0.shape[1]
        if b_ih is None:
            bias_rz, bias_x, bias_n = None, None, w_hh.new_zeros(h0.shape[1])
        else:
            bias_rz, bias_x, bias_n = (b_ih + b_hh)[:size], b_ih[size:], b_hh[size:]
        xp_rz, xp_n = _project(x, w_ih[:size], bias_rz), _project(x, w_ih[size:], bias_x)
        h, y, *factors = gru(xp_rz, xp_n, w_hh[:size], w_hh[size:], bias_n, h0, reverse)
        return y, h, *factors

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, _, w_ih, w_hh, b_ih, _, ctx.reverse = inputs
        _, _, *factors = output
        ctx.biased = b_ih is not None
        ctx.mark_non_differentiable(*factors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w_ih, w_hh, *factors)

    @staticmethod
    def backward(ctx, dy, dh, *_):  # type: ignore[no-untyped-def]
        x, w_ih, w_hh, previous, p, s, z = ctx.saved_tensors
        dy, dh = _or_zeros(dy, previous), _or_zeros(dh, previous[0])
        dh0, dm, dz = gru_backward(dy, p, s, z, w_hh, dh, ctx.reverse)
        dx, dw_ih, db_ih = _projection_gradients(dz, x, w_ih, ctx.biased)
        dw_hh = _rows(dm).t() @ _rows(previous)
        db_hh = _rows(dm).sum(0) if ctx.biased else None
        return dx, dh0, dw_ih, dw_hh, db_ih, db_hh, None


class _Rnn(torch.autograd.Function):
    @staticmethod
    def forward(x, h0, w_ih, w_hh, b_ih, b_hh, reverse, relu):  # type: ignore[no-untyped-def]
        bias = None if b_ih is None else b_ih + b_hh
        recurrence = rnn_relu if relu else rnn_tanh
        h, y, previous = recurrence(_project(x, w_ih, bias), w_hh, h0, reverse)
        return y, h, previous

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, _, w_ih, w_hh, b_ih, _, ctx.reverse, ctx.relu = inputs
        y, _, previous = output
        ctx.biased = b_ih is not None
        ctx.mark_non_differentiable(previous)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w_ih, w_hh, y, previous)

    @staticmethod
    def backward(ctx, dy, dh, *_):  # type: ignore[no-untyped-def]
        x, w_ih, w_hh, y, previous = ctx.saved_tensors
        dy, dh = _or_zeros(dy, previous), _or_zeros(dh, previous[0])
        slope = (y > 0).to(y.dtype) if ctx.relu else 1 - y * y
        dh0, dz = rnn_backward(dy, slope, w_hh, dh, ctx.reverse)
        dx, dw_ih, db = _projection_gradients(dz, x, w_ih, ctx.biased)
        dw_hh = _rows(dz).t() @ _rows(previous)
        return dx, dh0, dw_ih, dw_hh, db, db, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[2])


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = _rows(x)
    xp = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
    return xp.reshape(x.shape[0], -1, weight.shape[0])


def _projection_gradients(
    dz: Tensor, x: Tensor, weight: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows = _rows(dz)
    bias = rows.sum(0) if biased else None
    return (rows @ weight).reshape(x.shape), rows.t() @ _rows(x), bias


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    """What nobody uses has no gradient."""
    return torch.zeros_like(like) if gradient is None else gradient
