"""PyTorch's operators in terms of operators that ONNX has and that devices may run.

Most are backward operators, for which `torch.onnx` has no translation. Some are forward operators
that it would translate to something slow, not allowed on devices, or wrong without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, get_decompositions

from export.decompositions import (
    activations,
    convolution,
    losses,
    maxima,
    padding,
    reductions,
    separable,
)
from export.decompositions.padding import constant_pad

aten = torch.ops.aten

_NORMALIZATIONS = [
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_functional,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update,
    aten._batch_norm_with_update_functional,
    aten._batch_norm_no_update,
    aten.batch_norm_backward,
    aten.native_group_norm,
    aten.native_layer_norm,
]
"""Never left to `torch.onnx`: it translates batch normalisation in training to that of inference,
without a warning."""


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Core ATen decompositions, PyTorch's other useful ones, and ours."""
    table: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    table.update(get_decompositions(_NORMALIZATIONS))
    # PyTorch's decomposition ends in an operator that has no translation, `aten.prod` has one.
    for overload in ("default", "dim_int"):
        table.pop(getattr(aten.prod, overload), None)
    for module in (activations, convolution, losses, maxima, padding, reductions, separable):
        table.update(module.TABLE)
    return table


__all__ = ["aten", "constant_pad", "decomposition_table"]
