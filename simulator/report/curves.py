"""When a curve of accuracy reaches a target: the metric of the FedAvg paper."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

Curve = Sequence[tuple[float, float]]
"""Points (x, accuracy) with x never falling: rounds, hours, bytes."""


def running_best(curve: Curve) -> list[tuple[float, float]]:
    """The curve made monotone: at each x the best accuracy so far; NaN is no accuracy.

    Raises:
        ValueError: x falls.
    """
    points: list[tuple[float, float]] = []
    best = float("-inf")
    for x, accuracy in curve:
        if isnan(accuracy):
            continue
        if points and x < points[-1][0]:
            raise ValueError(f"the curve goes back from {points[-1][0]} to {x}")
        best = max(best, accuracy)
        points.append((x, best))
    return points


def crossing(curve: Curve, target: float) -> float | None:
    """Where the running best first reaches the target, linear between points; None: never.

    A curve whose first point is there already says that point's x.
    """
    before: tuple[float, float] | None = None
    for x, best in running_best(curve):
        if best >= target:
            if before is None:
                return x
            return before[0] + (x - before[0]) * (target - before[1]) / (best - before[1])
        before = (x, best)
    return None


def rounds_to_target(curve: Curve, target: float) -> float | None:
    """Rounds of communication until the target accuracy; `curve` holds (round, test accuracy).

    McMahan et al. 2016, section 3: curves are made monotone, then interpolated linearly between
    their points where they cross the target. None: not within the curve.
    """
    return crossing(curve, target)
