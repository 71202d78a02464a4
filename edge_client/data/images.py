"""A folder of images, one sub-folder for each class."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_client.data import Loaded, Problems
from edge_client.data.collector import Collector, class_indices
from edge_client.data.config import DataConfig
from fedtide.errors import DataError
from fedtide.manifest import Array, Manifest

if TYPE_CHECKING:
    from PIL.Image import Image

AnyArray = NDArray[np.generic]
FILES_MAX = 500_000
PIXELS_MAX = 1 << 26
"""Known from an image's header, before it is decoded: 64 megapixels."""
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm"})
_FORMATS = ("PNG", "JPEG", "BMP", "PPM")
"""No other decoder sees a byte."""
_OPENED = 100
"""Images whose headers are read to describe the folder."""
_YOUNG_S = 5.0
"""An image that was written so recently and cannot be decoded is not done yet."""
_EXACT = {1: ("L", "1"), 3: ("RGB", "P")}
"""Modes that become so many channels of bytes without a loss."""


class _File(NamedTuple):
    written_ns: int
    name: str
    """In the folder of its class."""
    class_name: str
    size: int


def _pillow_hint() -> str:
    """How Pillow comes to where this fedtide is installed."""
    if "/opt/fedtide/versions/" in sys.prefix:
        return "on the server: fedtide server package --with images; then install that file here"
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").exists():
        return f"PIPX_HOME={prefix.parent.parent} pipx inject fedtide pillow"
    return f"{sys.executable} -m pip install pillow"


class ImageFolders:
    """See the module."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self._config, self._path = config, config.path
        self._classes = config.classes or ()
        try:
            import PIL.Image  # noqa: F401 - only whether it is there
        except ImportError as exc:
            raise DataError(
                "folders of images need the Python package 'pillow', which is not installed",
                hint=_pillow_hint(),
            ) from exc

    def stamp(self) -> Hashable:
        """Of every file's name, size and time."""
        files, _ = self._files()
        return hashlib.sha256(repr(files).encode(errors="surrogateescape")).digest()

    def describe(self, problems: Problems, rows_max: int | None = None) -> dict[str, Any]:
        """Images of each class, and their sizes and modes as the oldest hundred have them."""
        del problems, rows_max  # what no model takes is known when all are decoded
        from PIL import Image

        files, left_out = self._files()
        counts = Counter(file.class_name for file in files)
        kinds: Counter[str] = Counter()
        for file in files[:_OPENED]:
            try:
                with Image.open(self._of(file), formats=_FORMATS) as image:
                    kinds[f"{image.width}x{image.height} {image.mode}"] += 1
            except Exception:  # noqa: BLE001 - Pillow's plugins raise what they like
                kinds["unreadable"] += 1
        unopened = {"not opened": len(files) - _OPENED} if len(files) > _OPENED else {}
        return {
            "classes": {name: counts[name] for name in self._classes},
            "images": dict(kinds.most_common()) | unopened,
            "left_out": dict(left_out),
        }

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """Every image, or those that are used, decoded, in memory."""
        numbers = class_indices(self._config, manifest)
        shape = _shape(manifest.inputs)
        files, left_out = self._files()
        if self._config.choice == "newest" and self._config.examples_max is not None:
            files = files[-self._config.examples_max :]  # what is not used is not decoded
        collector = Collector(self._config, manifest, len(files), problems)
        for why, count in sorted(left_out.items()):
            collector.note(f"{count:,} files are left out: {why}")
        young = 0
        for file in files:
            try:
                x = self._decoded(file, shape).reshape(manifest.inputs.shape)
            except DataError as exc:
                if abs(time.time() - file.written_ns / 1e9) < _YOUNG_S:
                    young += 1
                else:
                    problems.add(exc)
            else:
                collector.add(x, numbers[file.class_name], repr(str(self._of(file))))
        if young:
            collector.note(f"{young:,} images are just being written: they are left out for now")
        return collector.finish()

    def _of(self, file: _File) -> Path:
        return self._path / file.class_name / file.name

    def _files(self) -> tuple[list[_File], Counter[str]]:
        """All images, the oldest first, and how many files are none, and why.

        Raises:
            DataError: the folder cannot be read, or has a sub-folder of no class.
        """
        files: list[_File] = []
        left_out: Counter[str] = Counter()
        try:
            for entry in _entries(self._path):
                if not entry.is_dir(follow_symlinks=False):
                    left_out["not in a class's folder"] += 1
                elif entry.name not in self._classes:
                    raise DataError(
                        f"{str(self._path)!r} has a sub-folder {entry.name!r}, which is no class; "
                        f"the first are {', '.join(map(repr, self._classes[:5]))}",
                        hint="data.classes names every class; or move it elsewhere",
                    )
                else:
                    found = _images(Path(entry.path), entry.name, left_out)
                    files += islice(found, FILES_MAX + 1 - len(files))
                if len(files) > FILES_MAX:
                    raise DataError(f"{str(self._path)!r} has more than {FILES_MAX:,} images")
        except OSError as exc:
            raise DataError(
                f"there is no folder of images {str(self._path)!r}: {exc.strerror}",
                hint="correct [data] path",
            ) from exc
        return sorted(files), left_out

    def _decoded(self, file: _File, shape: tuple[int, int, int]) -> AnyArray:
        """float32[channels, height, width], divided by the divisor.

        Raises:
            DataError: it cannot be decoded, or does not fit.
        """
        from PIL import Image, ImageOps

        path, (channels, height, width) = self._of(file), shape
        where = f"image {str(path)!r}"
        try:
            with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
                warnings.simplefilter("ignore")
                if image.width * image.height > PIXELS_MAX:
                    raise DataError(
                        f"{where} has {image.width}x{image.height} pixels, "
                        f"at most {PIXELS_MAX:,} are decoded"
                    )
                if self._config.fit == "convert":
                    image.draft("RGB" if channels == 3 else "L", (2 * width, 2 * height))
                image.load()
                upright = ImageOps.exif_transpose(image)
                fitting = self._fitting(upright, shape, where)
                pixels = np.asarray(fitting, np.uint8)
        except DataError:
            raise
        except Exception as exc:
            raise DataError(f"{where} cannot be decoded: {exc}", hint="remove it") from exc
        planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
        return np.divide(planes, self._config.divisor or 255.0, dtype=np.float32)

    def _fitting(self, image: Image, shape: tuple[int, int, int], where: str) -> Image:
        from PIL import Image as Images

        channels, height, width = shape
        mode = "L" if channels == 1 else "RGB"
        hint = 'data.fit = "convert" makes images fit'
        if self._config.fit == "convert":
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{where} has more than 8 bits a channel ({image.mode})")
            return image.convert(mode).resize((width, height), Images.Resampling.BILINEAR)
        if image.mode not in _EXACT[channels]:
            raise DataError(f"{where} is of mode {image.mode}, the model expects {mode}", hint=hint)
        if image.size != (width, height):
            raise DataError(
                f"{where} has {image.width}x{image.height} pixels, "
                f"the model expects {width}x{height}",
                hint=hint,
            )
        return image.convert(mode)


def _shape(inputs: Array) -> tuple[int, int, int]:
    """Channels, height and width of what the model takes.

    Raises:
        DataError: it takes no images.
    """
    shape = inputs.shape if len(inputs.shape) == 3 else (1, *inputs.shape)
    if len(shape) != 3 or shape[0] not in _EXACT or inputs.dtype != "float32":
        raise DataError(
            f"the model expects {inputs.dtype}{list(inputs.shape)}, images become "
            "float32[1 or 3, height, width]",
            hint="a function of your own can make of images what this model takes",
        )
    return shape[0], shape[1], shape[2]


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _images(folder: Path, class_name: str, left_out: Counter[str]) -> Iterator[_File]:
    for entry in _entries(folder):
        if entry.is_symlink():
            left_out["links"] += 1
        elif not entry.is_file() or Path(entry.name).suffix.lower() not in _SUFFIXES:
            left_out["no image by their names"] += 1
        else:
            with contextlib.suppress(FileNotFoundError):  # just removed, or renamed
                status = entry.stat(follow_symlinks=False)
                yield _File(status.st_mtime_ns, entry.name, class_name, status.st_size)
