"""Rewrites of the forward graph, before it is differentiated.

Each replaces a pattern by functions that compute the same, and whose gradients become graphs
that onnxruntime runs faster; what it does not cover it leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

Rewrite = Callable[[fx.Graph], int]
"""Changes the graph in place; the number of places changed."""

REWRITES: tuple[Rewrite, ...] = ()
"""In the order in which they are applied."""
