"""How evenly devices take part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def gini(counts: NDArray[np.int64]) -> float | None:
    """Gini coefficient of counts [devices]: 0 if all are equal, near 1 if one has everything.

    None: nobody has anything.
    """
    total = int(counts.sum())
    if total == 0:
        return None
    ranks = np.arange(1, len(counts) + 1)
    count = len(counts)
    return float(2 * (ranks * np.sort(counts)).sum() / (count * total) - (count + 1) / count)


def jain(counts: NDArray[np.int64]) -> float | None:
    """Jain's index of counts [devices]: 1 if all are equal, 1/devices if one has everything.

    Jain, Chiu, Hawe 1984. None: nobody has anything.
    """
    squares = float((counts.astype(np.float64) ** 2).sum())
    return float(counts.sum()) ** 2 / (len(counts) * squares) if squares else None
