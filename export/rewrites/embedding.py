"""Embeddings whose gradient is added up in the rows that were looked up."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from export.rewrites.nodes import argument, insert, is_call, replace

aten = torch.ops.aten


def rewrite(graph: fx.Graph) -> int:
    """Embeddings with or without a padding row; not those that scale gradients by frequency."""
    changed = 0
    for node in list(graph.nodes):
        if not is_call(node, aten.embedding.default) or argument(node, 3, False):
            continue
        weight, index = node.args[:2]
        replace(node, insert(graph, node, embedding, weight, index, argument(node, 2, -1)))
        changed += 1
    return changed


def has_constant_row(graph: fx.Graph) -> bool:
    """Whether an embedding has a padding row, whose value is used and whose gradient is not."""
    found = [node for node in graph.nodes if is_call(node, aten.embedding.default)]
    return any(argument(node, 2, -1) >= 0 for node in found)


def embedding(weight: Tensor, index: Tensor, padding: int) -> Tensor:
    """Rows [...,e] of weight[n,e] at index[...]; row `padding`, if not negative, is constant."""
    return _Embedding.apply(weight, index, padding)  # type: ignore[no-any-return,no-untyped-call]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(weight, index, padding):  # type: ignore[no-untyped-def]  # noqa: ARG004
        return aten.embedding.default(weight, index)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]  # noqa: ARG004
        weight, index, ctx.padding = inputs
        ctx.shape = weight.shape
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        if ctx.padding >= 0:
            grad = grad * (index != ctx.padding).to(grad.dtype)[..., None]
        width = ctx.shape[1]
        # Becomes ScatterElements. ScatterND, of index_put, loses rows when it has several threads.
        places = index.reshape(-1, 1).expand(-1, width)
        return grad.new_zeros(ctx.shape).scatter_add(0, places, grad.reshape(-1, width)), None, None
