"""Activations in place become pure: what follows sees a value, and rewrites see one kind of node.

Only where nothing else shares the memory; buffers that a layer changes stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_MAYBE_VIEWS = frozenset(
    f"aten::{name}"
    for name in ("reshape", "flatten", "contiguous", "to", "type_as", "dropout", "feature_dropout")
)
"""Operators that return their input, or a view of it, sometimes."""


def rewrite(graph: fx.Graph) -> int:
    """Replace `relu_(x)` by `relu(x)`, and so on, and later uses of x by it; how many."""
    count = 0
    for node in list(graph.nodes):
        pure = _pure(node)
        if pure is None or not _owns_its_memory(node.args[0], node):
            continue
        x = node.args[0]
        order = {each: place for place, each in enumerate(graph.nodes)}
        with graph.inserting_before(node):
            new = graph.call_function(pure, node.args, node.kwargs)
        new.meta = dict(node.meta)
        for user in list(x.users):
            if user is not new and order.get(user, -1) > order[node]:
                user.replace_input_with(x, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        count += 1
    return count


def _pure(node: fx.Node) -> Any:
    """The operator without the underscore, of the same overload."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name in ("copy_", "fill_", "zero_", "bernoulli_"):
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    pure = getattr(packet, target._overloadname, None)
    if pure is None or len(pure._schema.arguments) != len(target._schema.arguments):
        return None
    return pure


def _owns_its_memory(x: Any, writer: fx.Node) -> bool:
    """x is computed, is no view, has no views, and keeps its dtype and shape."""
    if not isinstance(x, fx.Node) or x.op != "call_function" or _shares(x):
        return False
    before, after = x.meta.get("val"), writer.meta.get("val")
    if not (isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)):
        return False
    if before.dtype != after.dtype:
        return False
    return not any(_shares(user) for user in x.users if user is not writer)


def _shares(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function"
    if target._schema.name in _MAYBE_VIEWS:
        return True
    return any(result.alias_info is not None for result in target._schema.returns)
