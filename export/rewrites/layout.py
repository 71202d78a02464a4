"""Images channels last from the first convolution to the last layer that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from export.rewrites import pooling
from export.rewrites.images import leave, source, to_channels_last
from export.rewrites.nodes import argument, insert, is_call, replace
from export.rewrites.normalization import batch_norm

aten = torch.ops.aten

_ELEMENTWISE = frozenset(
    {
        aten.relu.default,
        aten.relu_.default,
        aten.relu6.default,
        aten.leaky_relu.default,
        aten.elu.default,
        aten.gelu.default,
        aten.silu.default,
        aten.silu_.default,
        aten.hardswish.default,
        aten.hardswish_.default,
        aten.hardsigmoid.default,
        aten.hardtanh.default,
        aten.hardtanh_.default,
        aten.mish.default,
        aten.softplus.default,
        aten.sigmoid.default,
        aten.tanh.default,
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.neg.default,
        aten.clamp.default,
    }
)


def rewrite(graph: fx.Graph) -> int:
    """Move [b,h,w,c] -> [b,c,h,w] behind its users that work either way; drop what cancels."""
    changed = 0
    for node in list(graph.nodes):
        if is_call(node, to_channels_last):
            inner = source(node.args[0])
            if inner is not None:
                replace(node, inner)
                changed += 1
            continue
        sunk = _sink(graph, node) if node.op == "call_function" and node.args else None
        if sunk is not None:
            leave(sunk, node)
            changed += 1
    graph.eliminate_dead_code(_has_effects)
    return changed


def _sink(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The same operator on images channels last, if there is one and they are there."""
    if node.target in _ELEMENTWISE:
        return _elementwise(graph, node)
    if is_call(node, aten.cat.default):
        return _concatenation(graph, node)
    x = source(node.args[0])
    form = _FORMS.get(node.target)
    return form(graph, node, x) if x is not None and form is not None else None


def _elementwise(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    arguments: list[Any] = []
    for given in node.args:
        x = source(given)
        if isinstance(given, fx.Node) and x is None:
            return None
        arguments.append(given if x is None else x)
    if node.kwargs or not any(isinstance(given, fx.Node) for given in arguments):
        return None
    assert callable(node.target)
    return insert(graph, node, node.target, *arguments)


def _concatenation(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    given = node.args[0]
    assert isinstance(given, (list, tuple))
    inputs = [source(x) for x in given]
    if any(x is None for x in inputs):
        return None
    axis = (0, 3, 1, 2)[argument(node, 1, 0) % 4]
    return insert(graph, node, aten.cat.default, inputs, axis)


def _batch_norm(graph: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node | None:
    *statistics, training, momentum, eps = node.args[1:8]
    if not isinstance(momentum, float) or not isinstance(training, bool):
        return None
    return insert(graph, node, batch_norm, x, *statistics, training, momentum, eps)


def _mean(graph: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node | None:
    """Global average pooling, which keeps the two dimensions."""
    if is_call(node, aten.mean.dim):
        axes, keeps = sorted(axis % 4 for axis in node.args[1]), argument(node, 2, False)  # type: ignore[union-attr,operator]
        if axes != [2, 3] or not keeps or node.kwargs:
            return None
    elif list(node.args[1]) != [1, 1]:  # type: ignore[arg-type]
        return None
    return insert(graph, node, aten.mean.dim, x, [1, 2], True)


_FORMS: dict[Any, Callable[[fx.Graph, fx.Node, fx.Node], fx.Node | None]] = {
    aten.batch_norm.default: _batch_norm,
    aten.adaptive_avg_pool2d.default: _mean,
    aten.mean.dim: _mean,
    aten.max_pool2d.default: pooling.max_pool,
    aten.avg_pool2d.default: pooling.average_pool,
}


def _has_effects(node: fx.Node) -> bool:
    """Also regions without gradient, in which a model updates its statistics."""
    return bool(node.is_impure()) or isinstance(node.target, torch._ops.HigherOrderOperator)
