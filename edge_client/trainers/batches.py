"""Checks that local data fit the model, before a runtime sees them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import Column
from fedtide.dataset import wrong_input, wrong_label
from fedtide.errors import DataError
from fedtide.manifest import Array, Manifest

AnyArray = NDArray[np.generic]


def check_batch(manifest: Manifest, x: AnyArray, y: AnyArray) -> tuple[AnyArray, AnyArray]:
    """x[b, ...] and y[b, ...] as contiguous arrays of the manifest's shapes and dtypes, b >= 1.

    Values are never converted: a silent cast of labels or pixels would train another model.

    Raises:
        DataError: another shape, dtype or length, no example, or a value out of range.
    """
    x, y = _check("inputs", manifest.inputs, x), _check("labels", manifest.labels, y)
    if len(x) != len(y):
        raise DataError(f"there are {len(x):,} inputs but {len(y):,} labels")
    if not len(x):
        raise DataError("there are no examples")
    for wrong in (wrong_input(manifest, x), wrong_label(manifest, y)):
        if wrong is not None:
            raise DataError(wrong.said())
    return x, y


def has_labels(manifest: Manifest, y: Column, chosen: NDArray[np.int64]) -> bool:
    """Whether any of the chosen examples counts: a mean over none of them is no loss."""
    return manifest.ignored_label is None or bool((y[chosen] != manifest.ignored_label).any())


def _check(what: str, expected: Array, actual: AnyArray) -> AnyArray:
    if actual.dtype != expected.dtype or actual.shape[1:] != expected.shape:
        raise DataError(
            f"{what} have shape {actual.shape} and dtype {actual.dtype}, the model expects "
            f"{('n', *expected.shape)} and {expected.dtype}"
        )
    return np.ascontiguousarray(actual)
