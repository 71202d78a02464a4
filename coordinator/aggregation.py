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

from fedtide.vectors import Vector


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
    scaled = np.empty(elements_count, dtype=np.float64)
    examples = 0
    for weight, delta in contributions:
        if weight < 1 or delta.shape != (elements_count,):
            raise ValueError(f"a contribution of {weight} examples and {delta.shape} values")
        np.multiply(delta, float(weight), out=scaled, dtype=np.float64)
        total += scaled
        examples += weight
    if examples == 0:
        raise ValueError("no contribution to average")
    total /= examples
    return total.astype(np.float32)


def apply_delta(model: Vector, delta: Vector) -> Vector:
    """The next global model: plain FedAvg, a server step of size one."""
    return (model.astype(np.float64) + delta).astype(np.float32)
