"""The last step of a training graph: base + gradient, without storing the gradient.

A gradient that is a product becomes a Gemm that starts from the base; one that is rows of a large
table goes straight to those rows of the base.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_TABLE_MIN = 1 << 16
"""Elements from which on a table gets its rows added directly. Below, the sum of a row is
formed first: one addition to a large value loses less than many, and zeros cost little."""


def merge_updates(graph: fx.Graph) -> None:
    """base + (mm(a, b) + rows) -> addmm and scatter_add that start from the base, in place."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
            continue
        base, gradient = node.args
        if not isinstance(base, fx.Node) or base.op != "placeholder":
            continue
        if not isinstance(gradient, fx.Node):
            continue
        with graph.inserting_before(node):
            merged = _add(graph, base, _terms(gradient), _numel(base))
        if merged is not None:
            node.replace_all_uses_with(merged)


def _terms(gradient: fx.Node) -> list[fx.Node]:
    """What the gradient is the sum of; each term has no other use."""
    parts = list(gradient.args)
    whole = gradient.target is not aten.add.Tensor or gradient.kwargs or len(gradient.users) > 1
    if whole or not all(isinstance(part, fx.Node) for part in parts):
        return [gradient]
    return [term for part in parts if isinstance(part, fx.Node) for term in _terms(part)]


def _add(graph: fx.Graph, base: fx.Node, terms: list[fx.Node], numel: int) -> fx.Node | None:
    """The base with all terms added, products first; None if that would change nothing."""
    products = [term for term in terms if term.target is aten.mm.default and _once(term)]
    rows = [term for term in terms if numel >= _TABLE_MIN and _is_rows(term) and _once(term)]
    if not products and not rows:
        return None
    total = base
    for term in products:
        total = graph.call_function(aten.addmm.default, (total, *term.args))
    for term in terms:
        if term not in products and term not in rows:
            total = graph.call_function(aten.add.Tensor, (total, term))
    for term in rows:
        total = graph.call_function(aten.scatter_add.default, (total, *term.args[1:]))
    return total


def _once(node: fx.Node) -> bool:
    return len(node.users) == 1


def _is_rows(node: fx.Node) -> bool:
    """Whether it is rows added to zeros."""
    if node.target is not aten.scatter_add.default or node.args[1] != 0:
        return False
    zeros: Any = node.args[0]
    return zeros.target is aten.full.default and zeros.args[1] == 0


def _numel(node: fx.Node) -> int:
    known = node.meta.get("val")
    return known.numel() if isinstance(known, torch.Tensor) else 0
