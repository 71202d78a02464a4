"""Images channels last: permutations around a layer, which `layout` moves and cancels."""

from __future__ import annotations

import torch
from torch import fx

from export.rewrites.nodes import insert, is_call


def to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """x[b,c,h,w] -> [b,h,w,c]."""
    return x.permute(0, 2, 3, 1).contiguous()


def from_channels_last(x: torch.Tensor) -> torch.Tensor:
    """x[b,h,w,c] -> [b,c,h,w].

    Contiguous: some operators of PyTorch look at strides and do what has no ONNX form.
    """
    return x.permute(0, 3, 1, 2).contiguous()


def enter(x: fx.Node, before: fx.Node) -> fx.Node:
    """A node with the image `x` channels last."""
    return source(x) or insert(before.graph, before, to_channels_last, x)


def leave(x: fx.Node, node: fx.Node) -> None:
    """Let x[b,h,w,c] take the place of `node`, which is the same image as [b,c,h,w]."""
    image = insert(node.graph, node, from_channels_last, x)
    node.replace_all_uses_with(image)
    node.graph.erase_node(node)


def source(node: object) -> fx.Node | None:
    """The image channels last that `node` gives as [b,c,h,w], if that is what it does."""
    if isinstance(node, fx.Node) and is_call(node, from_channels_last):
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        return inner
    return None
