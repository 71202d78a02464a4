"""Reduction of a round's updates: McMahan et al. 2016, Algorithm 1, over those who reported.

    w <- w + sum_k (n_k / n) delta_k,   n = sum_k n_k

which equals sum_k (n_k / n) w_k for a common start w. Deltas are read one at a time, in order of
device id, and summed in float64: memory is O(model) whatever the number of updates, and the bits
are the same whatever the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedtide.vectors import Vector

BLOCK_VALUES = 16_384
"""128 KiB of float64: with the sum's own they fit the cache that each core has to itself."""


class Contribution(NamedTuple):
    """One device's part: its weight n_k > 0 and its delta, float32[n]."""

    examples: int
    delta: Vector


def weighted_mean(contributions: Iterable[Contribution], elements_count: int) -> Vector:
    """float32[elements_count]: the mean delta, weighted by examples.

    Raises:
        ValueError: no contribution, a weight below 1, or a delta of another length.
    """
    total = np.zeros(elements_count, dtype=np.float64)
    examples = 0
    for weight, delta in contributions:
        if weight < 1 or delta.shape != (elements_count,):
            raise ValueError(f"a contribution of {weight} examples and {delta.shape} values")
        _add_scaled(total, delta, float(weight))
        examples += weight
    if examples == 0:
        raise ValueError("no contribution to average")
    total /= examples
    return total.astype(np.float32)


def _add_scaled(total: NDArray[np.float64], delta: Vector, weight: float) -> None:
    """total += weight * delta, in float64.

    Block by block, so that what is in between stays in the processor's cache; each value is
    computed for itself, so the blocks change no bit.
    """
    scaled = np.empty(min(BLOCK_VALUES, len(total)), dtype=np.float64)
    for start in range(0, len(total), BLOCK_VALUES):
        part = total[start : start + BLOCK_VALUES]
        product = scaled[: len(part)]
        np.multiply(delta[start : start + BLOCK_VALUES], weight, out=product, dtype=np.float64)
        np.add(part, product, out=part)


def apply_delta(model: Vector, delta: Vector) -> Vector:
    """The next global model: plain FedAvg, a server step of size one."""
    return (model.astype(np.float64) + delta).astype(np.float32)
