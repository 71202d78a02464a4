"""CIFAR-10: colour photographs of ten classes, from its binary version or from JPEG copies.

Preprocessing as in McMahan et al. 2016, §3, whose words are "cropping the images to 24x24,
randomly flipping left-right and adjusting the contrast, brightness and whitening", with the numbers
of TensorFlow's tutorial, from which the paper has its model. Brightness is left out: it adds a
number to all pixels, and whitening takes it off again.
"""

from __future__ import annotations

import hashlib
import io
import math
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedtide.dataset import Examples, read_arrays
from fedtide.errors import ConfigError, DataError, install_hint
from simulator.learning.datasets.files import AGAIN, missing, unreadable

SIDE, CROP, CLASSES = 32, 24, 10
PIXELS = 3 * SIDE * SIDE
CONTRAST = (0.2, 1.8)
BINARY_FOLDER = "cifar-10-batches-bin"
TRAINING_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
JPEG_FILE = "cifar10_jpeg.npz"

Pixels = NDArray[np.uint8]


class _Images(Protocol):
    labels: NDArray[np.int64]

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        """uint8[k, 3, 32, 32]."""


class Cifar10:
    """x float32[n, 3, 24, 24], y int64[n].

    Training images are cropped, flipped and changed in contrast at random, as a function of `seed`
    and the image's index only: another seed, another look. So all epochs of one round see the same
    images, where the paper's pipeline draws anew for each. Test images are cropped at the centre.
    All are whitened, each by its own mean and deviation.
    """

    name = "cifar10"
    groups = None

    def __init__(self, data_dir: Path) -> None:
        binary, jpeg = data_dir / BINARY_FOLDER, data_dir / JPEG_FILE
        self._training: _Images
        self._test: _Images
        self._lossy = not binary.exists() and jpeg.exists()
        if self._lossy:
            _need_pillow(jpeg)
            arrays = read_arrays(jpeg)
            self._training = _Jpeg(jpeg, arrays, "train")
            self._test = _Jpeg(jpeg, arrays, "test")
        else:
            try:
                self._training = _Binary([binary / name for name in TRAINING_FILES])
                self._test = _Binary([binary / TEST_FILE])
            except FileNotFoundError as exc:
                raise missing(self.name, Path(exc.filename), data_dir) from exc
        self.labels = self._training.labels

    def __len__(self) -> int:
        """Training examples."""
        return len(self.labels)

    @property
    def about(self) -> str:
        """One line for people."""
        copies = ", LOSSY: from JPEG copies, not the original" if self._lossy else ""
        return f"CIFAR-10, {len(self):,} images to train on, cropped to 24x24{copies}"

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:
        """Training examples, made anew: the same for the same seed."""
        pixels = self._training.pixels(indices)
        lots = _lots(seed, indices)
        x = _crop(pixels, lots[:, 0] % 9, lots[:, 1] % 9, lots[:, 2] % 2 == 1)
        low, high = CONTRAST
        factor = low + (high - low) * (lots[:, 3] >> np.uint64(11)) / 2**53
        mean = x.mean((2, 3), keepdims=True)  # of each channel
        x -= mean
        x *= factor.astype(np.float32)[:, None, None, None]
        x += mean
        return Examples(_whitened(x), self.labels[indices])

    @cached_property
    def test(self) -> Examples:
        """The test images, cropped at the centre."""
        count = len(self._test.labels)
        middle = np.full(count, (SIDE - CROP) // 2)
        pixels = self._test.pixels(np.arange(count))
        x = _crop(pixels, middle, middle, np.zeros(count, bool))
        return Examples(_whitened(x), self._test.labels)


class _Binary:
    """The files of the binary version, mapped: a byte of label, then red, green, blue."""

    def __init__(self, paths: list[Path]) -> None:
        self._records = [_records(path) for path in paths]
        self._ends = np.cumsum([len(records) for records in self._records])
        self.labels = np.concatenate([records[:, 0] for records in self._records]).astype(np.int64)

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        chosen = np.empty((len(indices), PIXELS), np.uint8)
        file = np.searchsorted(self._ends, indices, side="right")
        for number, records in enumerate(self._records):
            here = file == number
            start = int(self._ends[number]) - len(records)
            chosen[here] = records[indices[here] - start, 1:]
        return chosen.reshape(-1, 3, SIDE, SIDE)


def _records(path: Path) -> Pixels:
    try:
        size = path.stat().st_size
        if not size or size % (1 + PIXELS):
            raise DataError(
                f"{str(path)!r} has {size:,} bytes, expected {1 + PIXELS:,} for each image",
                hint=AGAIN,
            )
        records = np.memmap(path, np.uint8, "r").reshape(-1, 1 + PIXELS)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise unreadable(path, exc) from exc
    _check_labels(path, records[:, 0])
    return records


class _Jpeg:
    """Images as JPEG, decoded on demand: <part>_jpeg, _offsets and _labels of an .npz."""

    def __init__(self, path: Path, arrays: dict[str, NDArray[np.generic]], part: str) -> None:
        self._path, self._part = path, part
        self._content = self._array(arrays, "jpeg", "uint8")
        self._offsets = self._array(arrays, "offsets", "int64").astype(np.int64)
        labels = self._array(arrays, "labels", "uint8")
        offsets = self._offsets
        if (
            len(offsets) != len(labels) + 1
            or len(labels) < 1
            or offsets[0] != 0
            or offsets[-1] != len(self._content)
            or (np.diff(offsets) <= 0).any()
        ):
            raise DataError(
                f"{str(path)!r} is damaged: {part}_offsets must go up from 0 to the "
                f"{len(self._content):,} bytes of {part}_jpeg, one more than the {len(labels):,} "
                "labels"
            )
        _check_labels(path, labels.astype(np.uint8))
        self.labels = labels.astype(np.int64)

    def _array(
        self, arrays: dict[str, NDArray[np.generic]], name: str, dtype: str
    ) -> NDArray[np.generic]:
        array = arrays.get(f"{self._part}_{name}")
        if array is None or array.ndim != 1 or array.dtype != dtype:
            found = "none" if array is None else f"{array.dtype}{list(array.shape)}"
            raise DataError(
                f"{str(self._path)!r} should have an array '{self._part}_{name}', {dtype} of one "
                f"dimension; there is {found}"
            )
        return array

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        decoded = np.empty((len(indices), SIDE, SIDE, 3), np.uint8)
        for place, index in enumerate(indices):
            decoded[place] = self._decode(int(index))
        return decoded.transpose(0, 3, 1, 2)

    def _decode(self, index: int) -> Pixels:
        from PIL import Image

        content = self._content[self._offsets[index] : self._offsets[index + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                if image.size != (SIDE, SIDE):
                    raise ValueError(f"it has {image.size[0]}x{image.size[1]} pixels")
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
            raise DataError(
                f"{str(self._path)!r}: image {index:,} of {self._part} is no JPEG of "
                f"{SIDE}x{SIDE} pixels: {exc}"
            ) from exc


def _need_pillow(path: Path) -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as exc:
        raise ConfigError(
            f"{str(path)!r} has JPEG images, and Pillow, which reads them, is not installed",
            hint=f"{install_hint('simulate')}; or pip install pillow",
        ) from exc


def _check_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    if labels.max() >= CLASSES:
        first = int(np.argmax(labels >= CLASSES))
        raise DataError(
            f"{str(path)!r} has the label {labels[first]} at {first:,}, expected 0 to 9", hint=AGAIN
        )


def _lots(seed: int, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64[k, 4], random numbers for each index: a function of it and the seed only."""
    key = int.from_bytes(hashlib.sha256(f"cifar10/{seed}".encode()).digest()[:8], "little")
    lots = [np.random.Philox(key=[key, int(index)]).random_raw(4) for index in indices]
    return np.array(lots, np.uint64).reshape(-1, 4)


def _crop(
    pixels: Pixels, top: NDArray[np.generic], left: NDArray[np.generic], flip: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """float32[k, 3, 24, 24] from there, those with `flip` left to right."""
    along = np.arange(CROP)
    rows = top.astype(np.int64)[:, None] + along
    columns = left.astype(np.int64)[:, None] + np.where(flip[:, None], along[::-1], along)
    image, channel = np.arange(len(pixels))[:, None, None, None], np.arange(3)[:, None, None]
    cut: Pixels = pixels[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return cut.astype(np.float32)


def _whitened(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and deviation 1 for each image, in place: tf.image.per_image_standardization."""
    x -= x.mean((1, 2, 3), keepdims=True)
    deviation = np.sqrt(np.square(x).mean((1, 2, 3), keepdims=True))
    x /= np.maximum(deviation, np.float32(1 / math.sqrt(3 * CROP * CROP)))
    return x
