"""What rewrites share: nodes with known shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode


def insert(
    graph: fx.Graph, before: fx.Node, function: Callable[..., Any], *arguments: Any
) -> fx.Node:
    """A call of `function` before a node, with the shape of its result in `meta["val"]`."""
    with graph.inserting_before(before):
        node = graph.call_function(function, arguments)
    values = fx.map_arg(arguments, lambda argument: argument.meta["val"])
    mode = detect_fake_mode(values) or detect_fake_mode(before.meta.get("val"))
    assert mode is not None, "the forward graph carries fake tensors"
    with mode, torch.no_grad():
        node.meta["val"] = function(*values)
    for key in ("nn_module_stack", "stack_trace"):
        if key in before.meta:
            node.meta[key] = before.meta[key]
    return node


def replace(node: fx.Node, new: fx.Node) -> None:
    """Let `new` take the place of `node`, which goes."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def is_call(node: object, *targets: object) -> bool:
    """Whether `node` calls one of the targets."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def argument(node: fx.Node, index: int, default: Any = None) -> Any:
    """A positional argument, or the operator's default."""
    return node.args[index] if len(node.args) > index else default


def value(node: object) -> torch.Tensor | None:
    """The fake tensor of a node, if it has one."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return found if isinstance(found, torch.Tensor) else None


def pair(sizes: Any) -> tuple[int, int]:
    """An operator's list of one or two sizes."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return int(sizes[0]), int(sizes[-1])
