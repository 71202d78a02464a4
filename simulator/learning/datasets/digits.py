"""The demo's 1,797 small digits: they come with the project, so examples can rely on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.data import load_digits
from fedtide.dataset import Examples
from simulator.learning.partitions import order

TEST_EXAMPLES = 360
SPLIT_SEED = 2016


class Digits:
    """x float32[n, 1, 8, 8] scaled as in the demo, y int64[n]; 1,437 to train on, 360 to test.

    Always the same split. Pixels 0..16 fit in a byte, but the whole set has 0.5 MB as float32.
    """

    name = "digits"
    groups = None

    def __init__(self, data_dir: Path | None = None) -> None:  # noqa: ARG002 - it has no files
        everything = load_digits()
        shuffled = order(len(everything.y), SPLIT_SEED, "digits")
        test, training = np.sort(shuffled[:TEST_EXAMPLES]), np.sort(shuffled[TEST_EXAMPLES:])
        self._x, self.labels = everything.x[training], everything.y[training]
        self.test = Examples(everything.x[test], everything.y[test])

    def __len__(self) -> int:
        """Training examples."""
        return len(self.labels)

    @property
    def about(self) -> str:
        """One line for people."""
        return f"the demo's digits, {len(self):,} images of 8x8 pixels to train on"

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:  # noqa: ARG002
        """Training examples."""
        return Examples(self._x[indices], self.labels[indices])
