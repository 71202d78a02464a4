"""Linear layers of more than two dimensions as one product of rows, the bias included."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from export.rewrites.nodes import argument, insert, is_call, replace, value

aten = torch.ops.aten


def rewrite(graph: fx.Graph) -> int:
    """Linear layers of [..., k] with two or more dimensions before the last.

    PyTorch's decomposition of those with a bias passes over the output once more to add it.
    """
    changed = 0
    for node in list(graph.nodes):
        if not is_call(node, aten.linear.default) or argument(node, 2) is None:
            continue
        x = value(node.args[0])
        if x is None or x.dim() < 3:
            continue
        replace(node, insert(graph, node, linear, *node.args))
        changed += 1
    return changed


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x[...,k], weight[o,k], bias[o] -> [...,o]."""
    rows = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t())
    return rows.reshape(*x.shape[:-1], weight.shape[0])
