"""Reduction of a round's updates: McMahan et al. 2016, Algorithm 1, over those who reported.

    w <- w + sum_k (n_k / n) delta_k,   n = sum_k n_k

which equals sum_k (n_k / n) w_k for a common start w. A delta that started from a model s versions
before w has the weight n_k / sqrt(1 + s) (FedBuff, Nguyen et al. 2022, section 5); one whose norm
stands out is scaled down (Sun et al. 2019). With FedNova each is scaled to one step, and the mean
of these to the mean number of steps (Wang et al. 2020, section 4). Scales follow from headers and
norms, before the first delta is read. Deltas are read one at a time, in order of device and task,
and summed in float64: memory is O(model) whatever the number of updates, and the bits are the same
whatever the order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedtide.vectors import Vector

BLOCK_VALUES = 16_384
"""128 KiB of float64: with the sum's own they fit the cache that each core has to itself."""
NORMS_MIN = 3
"""Fewer norms have no majority, so their median says nothing."""


class Contribution(NamedTuple):
    """One device's part: its examples n_k > 0 and its delta, float32[n]."""

    examples: int
    delta: Vector
    staleness: int = 0
    """Versions between the model that it started from and the one it is added to."""
    scale: float = 1.0
    """Of the delta."""


def norm_of(delta: Vector) -> float:
    """The L2 norm of float32[n], in float64 and in pieces, so that nothing of its size is made."""
    total = 0.0
    for start in range(0, len(delta), 1 << 16):
        piece = delta[start : start + (1 << 16)].astype(np.float64)
        total += float(np.dot(piece, piece))
    return math.sqrt(total)


def clip_scales(norms: Sequence[float | None], norm_factor: float | None) -> list[float]:
    """For each update what scales it to at most `norm_factor` times the median norm of all.

    1.0 for each where a norm is not known, there are fewer than three, or there is no bound.
    """
    known = [norm for norm in norms if norm is not None]
    if not norm_factor or len(known) < max(NORMS_MIN, len(norms)):
        return [1.0] * len(norms)
    bound = norm_factor * median(known)
    return [1.0 if norm <= bound or bound == 0 else bound / norm for norm in known]


def weight_of(examples: int, staleness: int) -> float:
    """What an update counts with in the mean, beside others."""
    return examples / math.sqrt(1 + staleness)


def fednova_scales(
    weights: Sequence[float],
    steps_norms: Sequence[float],
    norms: Sequence[float | None],
    norm_factor: float | None,
) -> list[float]:
    """For each update tau / a_k, with a_k > 0 what its steps amount to (`local_steps.steps_norm`).

    tau = sum_k p_k a_k, with p_k the share of its weight. Then the norms are bounded as in
    `clip_scales`, as they count now: of few steps, a small delta counts for much. And what is said
    of steps is untrusted, too: in tau, no a_k counts with more than `norm_factor` times the median.
    Any tau > 0 leads to the same model in the end (section 4: it is the size of the server's step).
    """
    counted = list(steps_norms)
    if norm_factor and len(counted) >= NORMS_MIN:
        most = max(1.0, norm_factor) * median(counted)
        counted = [min(one, most) for one in counted]
    tau = sum(w * a for w, a in zip(weights, counted, strict=True)) / sum(weights)
    scales = [tau / one for one in steps_norms]
    scaled = [None if n is None else n * s for n, s in zip(norms, scales, strict=True)]
    return [s * c for s, c in zip(scales, clip_scales(scaled, norm_factor), strict=True)]


def weighted_mean(contributions: Iterable[Contribution], elements_count: int) -> Vector:
    """float32[elements_count]: the mean delta, weighted by examples and staleness.

    Raises:
        ValueError: no contribution, a weight below 1, or a delta of another length.
    """
    total = np.zeros(elements_count, dtype=np.float64)
    weights = 0.0
    for examples, delta, staleness, scale in contributions:
        if examples < 1 or delta.shape != (elements_count,):
            raise ValueError(f"a contribution of {examples} examples and {delta.shape} values")
        weight = weight_of(examples, staleness)
        _add_scaled(total, delta, weight * scale)
        weights += weight
    if weights == 0:
        raise ValueError("no contribution to average")
    total /= weights
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
