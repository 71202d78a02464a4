"""MNIST: handwritten digits, in its four original files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedtide.dataset import Examples
from fedtide.errors import DataError
from simulator.learning.datasets.files import missing
from simulator.learning.datasets.idx import read_idx

SIDE = 28
CLASSES = 10


class Mnist:
    """x float32[n, 1, 28, 28] in 0..1, as in TensorFlow's tutorial and so the paper's; y int64[n].

    The folder mnist/ has train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k- likewise,
    each plain or as .gz. Plain ones open at once, and processes share their memory.
    """

    name = "mnist"
    groups = None

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._pixels, self.labels = self._part("train")

    def __len__(self) -> int:
        """Training examples."""
        return len(self.labels)

    @property
    def about(self) -> str:
        """One line for people."""
        return f"MNIST, {len(self):,} images to train on, pixels divided by 255"

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:  # noqa: ARG002
        """Training examples, made anew."""
        return Examples(_scaled(self._pixels[indices]), self.labels[indices])

    @cached_property
    def test(self) -> Examples:
        """The 10,000 of t10k."""
        pixels, labels = self._part("t10k")
        return Examples(_scaled(pixels), labels)

    def _part(self, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        images_path = self._data_dir / "mnist" / f"{part}-images-idx3-ubyte"
        labels_path = self._data_dir / "mnist" / f"{part}-labels-idx1-ubyte"
        pixels = self._read(images_path, 3)
        labels = self._read(labels_path, 1)
        if pixels.shape[1:] != (SIDE, SIDE) or not len(pixels):
            raise DataError(
                f"{str(images_path)!r} has the shape {list(pixels.shape)}, "
                f"expected [images, {SIDE}, {SIDE}]"
            )
        if len(pixels) != len(labels):
            raise DataError(
                f"{str(images_path)!r} has {len(pixels):,} images, "
                f"{labels_path.name} has {len(labels):,} labels"
            )
        if labels.max() >= CLASSES:
            first = int(np.argmax(labels >= CLASSES))
            raise DataError(
                f"{str(labels_path)!r} has the label {labels[first]} at {first:,}, expected 0 to 9"
            )
        return pixels, labels.astype(np.int64)

    def _read(self, path: Path, dimensions: int) -> NDArray[np.uint8]:
        try:
            return read_idx(path, dimensions)
        except FileNotFoundError as exc:
            raise missing(self.name, path, self._data_dir) from exc


def _scaled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = pixels[:, None].astype(np.float32)
    x /= 255
    return x
