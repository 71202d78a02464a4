"""Interpolation to a size that is known, instead of by factors.

The operators that `F.interpolate` calls compute the size in C++ from all sizes of the input, which
fixes the batch in the trace. The size is in the node's metadata.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_ALIGNED = (
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
"""Operators that take `align_corners` before the scales."""
_OTHERS = tuple(
    f"{mode}{rank}d"
    for mode in ("upsample_nearest", "_upsample_nearest_exact")
    for rank in (1, 2, 3)
)
_OVERLOADS = {
    getattr(aten, name).vec: getattr(aten, name).default for name in (*_ALIGNED, *_OTHERS)
}


def rewrite(graph: fx.Graph) -> int:
    """Replace the operators that take a size or factors by those that take both; how many."""
    count = 0
    for node in list(graph.nodes):
        if node.target in _OVERLOADS:
            _replace(graph, node, _OVERLOADS[node.target])
            count += 1
    return count


def _replace(graph: fx.Graph, node: fx.Node, target: Any) -> None:
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    sizes = [int(size) for size in node.meta["val"].shape[2:]]
    corners = [given["align_corners"]] if "align_corners" in names else []
    scales = given.get("scale_factors") or [None] * len(sizes)
    with graph.inserting_before(node):
        new = graph.call_function(target, (given["input"], sizes, *corners, *scales))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
