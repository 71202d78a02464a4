"""Passes over the differentiated graph, each making it smaller or faster and changing no value."""

from __future__ import annotations

import torch
from torch import fx
from torch._functorch.compile_utils import fx_graph_cse

from export.updates import merge_updates

aten = torch.ops.aten


def simplify(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` without repetitions and detours."""
    settle_writes(graph)
    if not any(map(writes, graph.nodes)):
        merge_constants(graph)
        graph = fx_graph_cse(graph)
    for one_pass in (merge_transposes, merge_sums, merge_updates):
        one_pass(graph)
        graph.eliminate_dead_code()
    return graph


def writes(node: fx.Node) -> bool:
    """Whether the node changes a tensor in place."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and bool(target._schema.is_mutable)


def settle_writes(graph: fx.Graph) -> None:
    """copy_(clone, new) -> new, and nothing where nobody looks: writes keep what is before and
    after them from being merged."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in reversed(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
            continue
        written = node.args[0]
        if not node.target._schema.is_mutable or getattr(written, "target", None) not in _COPIES:
            continue
        others = [user for user in written.users if user is not node]
        if any(order[user] > order[node] or user.target in _VIEWS for user in others):
            continue
        if node.target is aten.copy_.default and _same_type(*node.args[:2]):
            node.replace_all_uses_with(node.args[1])
        if not node.users:
            graph.erase_node(node)


_COPIES = frozenset({aten.clone.default})
_VIEWS = frozenset(
    {aten.alias.default, aten.detach.default, aten.view.default, aten.permute.default}
)


def _same_type(old: fx.Node, new: object) -> bool:
    if not isinstance(new, fx.Node):
        return False
    before, after = old.meta.get("val"), new.meta.get("val")
    return (
        isinstance(before, torch.Tensor)
        and isinstance(after, torch.Tensor)
        and (before.shape, before.dtype) == (after.shape, after.dtype)
    )


def merge_constants(graph: fx.Graph) -> None:
    """One node for each constant and each symbolic size, so that what uses them can be merged."""
    first: dict[object, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            key: object = node.target
        elif node.target is aten.sym_size.int and isinstance(node.meta.get("val"), torch.SymInt):
            key = str(node.meta["val"])
        else:
            continue
        if first.setdefault(key, node) is not node:
            node.replace_all_uses_with(first[key])


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
