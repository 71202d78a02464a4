"""Passes over the differentiated graph, each making it smaller or faster and changing no value."""

from __future__ import annotations

import torch
from torch import fx
from torch._functorch.compile_utils import fx_graph_cse

aten = torch.ops.aten


def simplify(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` without repetitions and detours."""
    graph = fx_graph_cse(graph)
    for one_pass in (merge_transposes, merge_sums, merge_updates):
        one_pass(graph)
        graph.eliminate_dead_code()
    return graph


def merge_transposes(graph: fx.Graph) -> None:
    """permute(permute(x)) that changes nothing -> x."""
    for node in graph.nodes:
        if node.target is not aten.permute.default:
            continue
        inner, order = node.args
        if inner.target is not aten.permute.default:
            continue
        if [inner.args[1][axis] for axis in order] == list(range(len(order))):
            node.replace_all_uses_with(inner.args[0])


def merge_updates(graph: fx.Graph) -> None:
    """weight + mm(a, b) -> addmm(weight, a, b): no gradient the size of the weight is stored."""
    for node in graph.nodes:
        if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
            continue
        weight, product = node.args
        if getattr(product, "target", None) is not aten.mm.default or len(product.users) > 1:
            continue
        if getattr(weight, "op", None) != "placeholder":
            continue
        with graph.inserting_before(node):
            merged = graph.call_function(aten.addmm.default, (weight, *product.args))
        node.replace_all_uses_with(merged)


def merge_sums(graph: fx.Graph) -> None:
    """view(sum(x, 0, keepdim)) that drops the kept dimension -> sum(x, 0): a bias' gradient."""
    for node in graph.nodes:
        if node.target not in (aten.view.default, aten.reshape.default):
            continue
        total, shape = node.args
        if getattr(total, "target", None) is not aten.sum.dim_IntList:
            continue
        x, axes, *keep = total.args
        if list(axes) != [0] or keep[:1] != [True] or len(total.meta["val"].shape) != 2:
            continue
        if list(shape) == [total.meta["val"].shape[1]]:
            with graph.inserting_before(node):
                plain = graph.call_function(aten.sum.dim_IntList, (x, [0]))
            plain.meta = dict(node.meta)
            node.replace_all_uses_with(plain)
