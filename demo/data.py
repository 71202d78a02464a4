"""Who holds which digits: the pathological split of McMahan et al. 2016, §3, on a small set.

A fifth of each digit's images is the coordinator's test set. The rest goes to ten devices, two
digits each, every digit on two devices, so that nobody can learn more than two digits alone.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DEVICES = tuple(f"device-{number:02}" for number in range(1, 11))
CLASSES = 10
TEST_FRACTION = 0.2


class Part(NamedTuple):
    """Images x float32[n, 1, 8, 8] and their digits y int64[n]."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def digits(self) -> tuple[int, ...]:
        """The digits that occur."""
        return tuple(int(digit) for digit in np.unique(self.y))

    def save(self, path: Path) -> None:
        """Write the .npz that client and coordinator read."""
        np.savez(path, x=self.x, y=self.y)


class Split(NamedTuple):
    """The test set and each device's own data."""

    test: Part
    devices: dict[str, Part]

    def pooled(self) -> Part:
        """All devices' data in one place: what federated learning does without."""
        parts = list(self.devices.values())
        return Part(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))


def load_digits() -> Part:
    """All 1,797 images. Pixels 0..16 become -1.25..2.75: centred, and wide enough to learn fast."""
    with np.load(Path(__file__).parent / "digits.npz", allow_pickle=False) as archive:
        pixels, digits = archive["x"], archive["y"]
    x = (pixels.astype(np.float32) - 5) / 4
    return Part(x[:, None], digits.astype(np.int64))


def split_digits(seed: int) -> Split:
    """The same split for the same seed."""
    everything = load_digits()
    lots = random.Random(f"split/{seed}")  # noqa: S311 - a repeatable demo, not a secret
    test: list[int] = []
    halves: dict[int, tuple[list[int], list[int]]] = {}
    for digit in range(CLASSES):
        indices = [int(index) for index in np.flatnonzero(everything.y == digit)]
        lots.shuffle(indices)
        cut = round(len(indices) * TEST_FRACTION)
        middle = (cut + len(indices)) // 2
        test += indices[:cut]
        halves[digit] = (indices[cut:middle], indices[middle:])
    circle = lots.sample(range(CLASSES), CLASSES)
    devices = {}
    for place, device in enumerate(DEVICES):
        mine = halves[circle[place]][0] + halves[circle[(place + 1) % CLASSES]][1]
        devices[device] = _part(everything, mine)
    return Split(_part(everything, test), devices)


def _part(everything: Part, indices: list[int]) -> Part:
    chosen = np.sort(np.asarray(indices))
    return Part(everything.x[chosen], everything.y[chosen])
