"""A function of one's own: `function = "my_function.py:load"`, `path = "readings.csv"`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = ("calm", "wind", "storm")


def load(path: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """x float32[n, 4], y int64[n]: whatever it takes to make them of what is on this device."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    x = [[float(row[name]) for name in ("north", "east", "up", "gust")] for row in rows]
    y = [CLASSES.index(row["weather"]) for row in rows]
    return np.array(x, np.float32), np.array(y)
