"""Operators that ONNX has and PyTorch lacks, as `torch.library` operators of our own.

A module here offers `TRANSLATIONS`, from its operators to onnxscript functions, and, for what
becomes a node with a subgraph, `expand`, which finishes the translated model in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

TRANSLATIONS: dict[Any, Callable[..., Any]] = {}


def expand(model: onnx.ModelProto) -> None:
    """Replace the nodes of our own domain by nodes of ai.onnx."""
    del model
