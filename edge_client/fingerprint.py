"""What PyTorch computed, in a few numbers for each tensor, so that it can be compared anywhere.

A change of n values is recorded as its largest value, its root mean square, and some random
projections: sums with random signs. The mean square of the difference of two projections is, over
random signs, that of n times the difference of the values itself (Johnson & Lindenstrauss 1984;
signs: Achlioptas 2003). The signs come from numpy's Philox as raw bits, which no version changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedtide.manifest import Tensor
from fedtide.vectors import Vector

TENSOR_ABSOLUTE, TENSOR_RELATIVE = 1e-6, 1e-3
"""A value of a tensor may be wrong by the first, and by the second times the tensor's change."""
MEASURE_ABSOLUTE, MEASURE_RELATIVE = 1e-5, 1e-4
"""A loss or metric may be wrong by the first, and by the second times itself."""

PROJECTIONS = 8
"""An error twice the allowed one passes with probability 0.02, ten times with 1e-7."""
_BLOCK = 1 << 12
"""Values at once, which decides whose sign is which bit. With more, numpy would start threads for
each little product, and take thirty times as long."""
_NOISE = np.float32(0.035)
_NOISE_STREAM = 1 << 63

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fingerprint:
    """Of a change of a whole model, in the order of its tensors."""

    largest: Floats
    """float64[tensors], largest absolute value."""
    mean_square: Floats
    """float64[tensors]."""
    projections: Floats
    """float64[tensors, PROJECTIONS]."""


def difference(after: Vector, before: Vector) -> Vector:
    """after - before; 0 where nothing changed, for masks hold infinite values."""
    with np.errstate(invalid="ignore"):
        return np.where(after == before, np.float32(0), after - before)


def fingerprint(change: Vector, tensors: Sequence[Tensor]) -> Fingerprint:
    """Of `change`, float32[elements_count]."""
    count = len(tensors)
    found = Fingerprint(np.zeros(count), np.zeros(count), np.zeros((count, PROJECTIONS)))
    for index, tensor in enumerate(tensors):
        part = change[tensor.offset : tensor.offset + tensor.size]
        bits = np.random.Philox(key=index)
        for start in range(0, tensor.size, _BLOCK):
            values = part[start : start + _BLOCK].astype(np.float64)
            raw = bits.random_raw(PROJECTIONS * _BLOCK // 64).astype("<u8")
            ones = np.unpackbits(raw.view(np.uint8), bitorder="little").reshape(PROJECTIONS, _BLOCK)
            signs = 2.0 * ones[:, : len(values)] - 1.0
            found.largest[index] = np.maximum(found.largest[index], np.abs(values).max())
            found.mean_square[index] += float(values @ values) / tensor.size
            found.projections[index] += signs @ values
    return found


def errors(actual: Fingerprint, expected: Fingerprint, tensors: Sequence[Tensor]) -> Floats:
    """The error of each tensor divided by the allowed one, float64[tensors]; infinite for NaN.

    Two errors, the larger one counts: that of the largest change, and the root mean square error
    of all values, as the projections tell it.
    """
    sizes = np.array([tensor.size for tensor in tensors], np.float64)
    squares = ((actual.projections - expected.projections) ** 2).mean(axis=1) / sizes
    ratios = (
        np.sqrt(squares) / _allowed(np.sqrt(expected.mean_square)),
        np.abs(actual.largest - expected.largest) / _allowed(expected.largest),
    )
    worst: Floats = np.maximum(*ratios)
    return np.where(np.isnan(worst), np.inf, worst)


def _allowed(change: Floats) -> Floats:
    return TENSOR_ABSOLUTE + TENSOR_RELATIVE * change


def start_near(initial: Vector, tensors: Sequence[Tensor], seed: int) -> Vector:
    """The initial model with small noise, so that no value is special; the same bits anywhere.

    Initial models are full of zeros and ones, with which a wrong graph may look right.
    """
    bits = np.random.Philox(key=_NOISE_STREAM + seed)
    vector = initial.copy()
    for tensor in tensors:
        # 24 bits are a float32 exactly, so no rounding depends on the machine.
        raw = (bits.random_raw(tensor.size) >> np.uint64(40)).astype(np.float32)
        noise = _NOISE * (raw * np.float32(2**-23) - np.float32(1))
        part = vector[tensor.offset : tensor.offset + tensor.size]
        if tensor.kind == "statistic":
            part *= np.float32(1) + np.abs(noise)  # a variance stays positive
        else:
            part += noise
    return vector
