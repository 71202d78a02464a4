"""Operators that ONNX has and PyTorch lacks, as `torch.library` operators of our own.

A module here offers `TRANSLATIONS`, from its operators to onnxscript functions, and, for what
becomes a node with a subgraph, `expand`, which finishes the translated model in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from export.operators import products, scans

TRANSLATIONS: dict[Any, Callable[..., Any]] = {**scans.TRANSLATIONS, **products.TRANSLATIONS}


def expand(model: onnx.ModelProto) -> None:
    """Replace the nodes of our own domain by nodes of ai.onnx."""
    # First, while everything that reads a transpose stands in the graph itself.
    products.expand(model)
    scans.expand(model)
