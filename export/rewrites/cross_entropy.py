"""Cross-entropy whose softmax is computed once, and whose gradient is softmax minus one-hot.

PyTorch's decomposition passes over the logits a dozen times, which for a large vocabulary takes
as long as the layer before it. Where that layer is linear, the two become one function: each
row's factor is then applied to the layer's small inputs instead of the logits' gradient.

n = rows (examples, or tokens of all examples), c = classes, k = inputs of the linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from export.rewrites.nodes import argument, insert, is_call, replace, value

aten = torch.ops.aten
_NONE, _MEAN, _SUM = 0, 1, 2
_VIEWS = (aten.reshape.default, aten.view.default, aten.flatten.using_ints)


def rewrite(graph: fx.Graph) -> int:
    """Cross-entropy, and log-softmax with NLL, of logits [n,c] or [b,c,...] and integer labels.

    Any reduction, ignored labels, class weights or label smoothing; both together, and labels
    that are probabilities, are left alone.
    """
    changed = 0
    for node in list(graph.nodes):
        call = _call(node)
        if call is None:
            continue
        layer = _linear_before(call)
        if layer is None:
            arguments = (call.logits, call.labels)
            new = insert(graph, node, cross_entropy, *arguments, *call.options)
        else:
            new = insert(graph, node, linear_cross_entropy, *layer, call.labels, *call.options)
        replace(node, new)
        changed += 1
    return changed


@dataclass(frozen=True)
class _Call:
    logits: fx.Node
    labels: fx.Node
    options: tuple[Any, ...]
    """Class weights or None, reduction, ignored label, label smoothing."""


def _call(node: fx.Node) -> _Call | None:
    if is_call(node, aten.cross_entropy_loss.default):
        logits, smoothing = node.args[0], argument(node, 5, 0.0)
    elif is_call(node, aten.nll_loss.default, aten.nll_loss_nd.default):
        source = node.args[0]
        if not is_call(source, aten.log_softmax.int, aten._log_softmax.default):
            return None
        assert isinstance(source, fx.Node)
        known = value(source)
        if known is None or source.args[1] not in (1, 1 - known.dim()):
            return None
        logits, smoothing = source.args[0], 0.0
    else:
        return None
    assert isinstance(logits, fx.Node)
    labels, weights = node.args[1], argument(node, 2)
    x, y = value(logits), value(labels)
    if x is None or y is None or x.dim() < 2 or y.dim() != x.dim() - 1 or y.is_floating_point():
        return None
    if x.dtype != torch.float32 or (weights is not None and smoothing > 0):
        return None
    assert isinstance(labels, fx.Node)
    return _Call(
        logits, labels, (weights, argument(node, 3, _MEAN), argument(node, 4, -100), smoothing)
    )


def _linear_before(call: _Call) -> tuple[Any, Any, Any] | None:
    """Input, weight and bias of a linear layer whose only use is this loss."""
    node = call.logits
    known = value(node)
    if known is None or known.dim() != 2:
        return None
    while is_call(node, *_VIEWS) and len(node.users) == 1:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before = value(source)
        if before is None or before.shape[-1] != known.shape[-1]:
            return None
        node = source
    if not is_call(node, aten.linear.default) or len(node.users) > 1:
        return None
    inputs = value(node.args[0])
    if inputs is None or inputs.dim() < 2 or inputs.shape[-1] > known.shape[1]:
        return None
    return node.args[0], node.args[1], argument(node, 2)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None,
    reduction: int, ignored: int, smoothing: float,
) -> Tensor:  # fmt: skip
    """As torch's, of logits [b,c,...] and labels [b,...]."""
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    index, factor = _labelled(labels, weights, ignored)
    losses = _CrossEntropy.apply(rows, index, smoothing)[0]  # type: ignore[no-untyped-call]
    return _reduced(losses, factor, reduction, labels)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor | None,
    reduction: int, ignored: int, smoothing: float,
) -> Tensor:  # fmt: skip
    """The same of the logits of a linear layer: x[...,k] with n rows, weight[c,k], bias[c]."""
    rows = x.reshape(-1, x.shape[-1])
    index, factor = _labelled(labels, weights, ignored)
    losses = _LinearCrossEntropy.apply(rows, weight, bias, index, smoothing)[0]  # type: ignore[no-untyped-call]
    return _reduced(losses, factor, reduction, labels)


def _labelled(labels: Tensor, weights: Tensor | None, ignored: int) -> tuple[Tensor, Tensor]:
    """Of each row: a label that can be looked up, and what the row counts."""
    y = labels.reshape(-1)
    kept = y != ignored
    index = torch.where(kept, y, 0)
    factor = kept.to(torch.float32)
    return index, factor if weights is None else factor * weights[index]


def _reduced(losses: Tensor, factor: Tensor, reduction: int, labels: Tensor) -> Tensor:
    losses = losses * factor
    if reduction == _NONE:
        return losses.reshape(labels.shape)
    total = losses.sum()
    return total / factor.sum() if reduction == _MEAN else total


def _losses(logits: Tensor, index: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Loss of each row [n], and the softmax [n,c].

    log(sum exp) from the largest logit and its probability, which cannot underflow.
    """
    p = torch.softmax(logits, 1)
    normaliser = logits.amax(1) - p.amax(1).log()
    losses = normaliser - (1 - smoothing) * logits.gather(1, index[:, None])[:, 0]
    if smoothing > 0:
        losses = losses - smoothing * logits.mean(1)
    return losses, p


def _slope(p: Tensor, index: Tensor, smoothing: float, factor: Tensor | None) -> Tensor:
    """Gradient of each row's loss [n,c], times its factor [n,1]."""
    if smoothing > 0:
        p = p - smoothing / p.shape[1]
    hit = torch.full_like(index[:, None], smoothing - 1, dtype=p.dtype)
    if factor is not None:
        p, hit = p * factor, hit * factor
    return p.scatter_add(1, index[:, None], hit)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(logits, index, smoothing):  # type: ignore[no-untyped-def]
        return _losses(logits, index, smoothing)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _, index, ctx.smoothing = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(index, output[1])

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        index, p = ctx.saved_tensors
        return _slope(p, index, ctx.smoothing, grad[:, None]), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, index, smoothing):  # type: ignore[no-untyped-def]
        logits = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        return _losses(logits, index, smoothing)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, weight, bias, index, ctx.smoothing = inputs
        ctx.biased = bias is not None
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, index, output[1])

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        x, weight, index, p = ctx.saved_tensors
        slope = _slope(p, index, ctx.smoothing, None)
        factor = grad[:, None]
        # A row times a matrix: onnxruntime has a fast path for it, not for a transposed column.
        bias = (grad[None] @ slope)[0] if ctx.biased else None
        return (slope @ weight) * factor, slope.t() @ (x * factor), bias, None, None
