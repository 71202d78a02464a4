"""Rewrites of the forward graph, before it is differentiated.

Each replaces a pattern by functions that compute the same, and whose gradients become graphs
that onnxruntime runs faster; what it does not cover it leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from export.rewrites import (
    convolution,
    cross_entropy,
    embedding,
    layout,
    linear,
    pooling,
    recurrent,
)

Rewrite = Callable[[fx.Graph], int]
"""Changes the graph in place; the number of places changed."""

REWRITES: tuple[Rewrite, ...] = (
    recurrent.rewrite,
    cross_entropy.rewrite,
    embedding.rewrite,
    linear.rewrite,
    pooling.rewrite,
    convolution.rewrite,
    layout.rewrite,
)
"""In the order in which they are applied."""
