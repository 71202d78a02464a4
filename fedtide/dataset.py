"""Labelled examples from a file, checked against what the model expects.

The same for a device's local data and for the coordinator's test set. Data are refused whole, with
the first thing that is wrong; nothing is trained on data that do not fit.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import DataError
from fedtide.manifest import Array, Manifest

AnyArray = NDArray[np.generic]
_ARCHIVE = (b"PK\x03\x04", b"PK\x05\x06")
"""How an .npz begins, and an empty one. All else numpy takes for a pickle, and advises to trust."""


class Examples(NamedTuple):
    """x[n, ...] and y[n, ...] in the shapes and dtypes of the manifest's `inputs` and `labels`."""

    x: AnyArray
    y: AnyArray


class Dataset(NamedTuple):
    """Examples to train on, and examples kept apart for evaluation (None: there are none)."""

    training: Examples
    held_out: Examples | None


def load_dataset(path: Path, manifest: Manifest, held_out_fraction: float = 0.0) -> Dataset:
    """Read an .npz with `x` and `y`, and optionally `x_held_out` and `y_held_out`.

    Without those two, the last `held_out_fraction` of the examples are kept apart: always the
    same ones, so that no example is ever trained on in one round and judged by in another.

    Raises:
        DataError: the file is missing, unreadable, empty, or does not fit the manifest.
    """
    arrays = read_arrays(path)
    training = _examples(arrays, "x", "y", path, manifest)
    if "x_held_out" in arrays or "y_held_out" in arrays:
        held_out = _examples(arrays, "x_held_out", "y_held_out", path, manifest)
        return Dataset(training, held_out)
    count = len(training.x)
    kept = min(round(held_out_fraction * count), count - 1)
    if kept < 1:
        return Dataset(training, None)
    cut = count - kept
    return Dataset(
        Examples(training.x[:cut], training.y[:cut]), Examples(training.x[cut:], training.y[cut:])
    )


def read_arrays(path: Path) -> dict[str, AnyArray]:
    """Every array of an .npz, by name.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) not in _ARCHIVE or not zipfile.is_zipfile(file):
                raise ValueError("it is no .npz archive, or not all of one")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: _array(archive, name) for name in archive.files}
    except Exception as exc:  # those of numpy, zipfile and zlib share no base class
        raise DataError(
            f"data file {str(path)!r} cannot be read: {exc}",
            hint="numpy.savez(path, x=inputs, y=labels) writes what is expected",
        ) from exc


def _array(archive: Any, name: str) -> AnyArray:
    member = f"{name}.npy" if f"{name}.npy" in archive.zip.namelist() else name
    with archive.zip.open(member) as file:
        _check_header(file, archive.zip.getinfo(member).file_size, name)
    try:
        array: AnyArray = archive[name]
    except ValueError as exc:
        if "pickle" in str(exc):
            raise ValueError(f"array {name!r} holds Python objects, not numbers") from exc
        raise
    return array


def _check_header(file: IO[bytes], bytes_there: int, name: str) -> None:
    """numpy makes room for what a header says before it reads on: it must be there."""
    version = np.lib.format.read_magic(file)
    later = version != (1, 0)
    read = np.lib.format.read_array_header_2_0 if later else np.lib.format.read_array_header_1_0
    shape, _, dtype = read(file)
    said = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (said > bytes_there and not dtype.hasobject):
        raise ValueError(
            f"array {name!r} is said to be {dtype}{list(shape)}, there are {bytes_there:,} bytes"
        )


def _examples(
    arrays: dict[str, AnyArray], x_name: str, y_name: str, path: Path, manifest: Manifest
) -> Examples:
    for name in (x_name, y_name):
        if name not in arrays:
            raise DataError(
                f"{str(path)!r} has no array {name!r}, only: {', '.join(sorted(arrays)) or 'none'}"
            )
    x = _fit(arrays[x_name], manifest.inputs, x_name, path)
    y = _fit(arrays[y_name], manifest.labels, y_name, path)
    if len(x) != len(y):
        raise DataError(f"{str(path)!r} has {len(x):,} {x_name} but {len(y):,} {y_name}")
    if not len(x):
        raise DataError(f"{str(path)!r} has no examples: {x_name} is empty")
    names = {"input": x_name, "label": y_name}
    for wrong in (wrong_input(manifest, x), wrong_label(manifest, y)):
        if wrong is not None:
            name = names[wrong.what]
            where = f" in {name!r} of {str(path)!r}, at {name}{wrong.place},"
            raise DataError(wrong.said(where))
    return Examples(x, y)


class OutOfRange(NamedTuple):
    """The first value that the model does not take."""

    what: Literal["input", "label"]
    value: int
    place: list[int]
    """Its index, the example's first."""
    rule: str
    """What would be right."""

    def said(self, where: str = "") -> str:
        """It in words, with a place if there is one to name."""
        return f"{self.what} {self.value}{where} is out of range: {self.rule}"


def wrong_input(manifest: Manifest, x: AnyArray) -> OutOfRange | None:
    """The first integer of x[n, ...] that is outside of what the manifest says of the inputs."""
    below = manifest.inputs.below
    if below is None:
        return None
    return _first_outside("input", x, below, None, f"the model takes 0 to {below - 1}")


def wrong_label(manifest: Manifest, y: AnyArray) -> OutOfRange | None:
    """The first label of y[n, ...] that is neither a class nor ignored."""
    below, ignored = manifest.classes, manifest.ignored_label
    if below is None:
        return None
    also = "" if ignored is None else f", and {ignored} for none"
    rule = f"the model has classes 0 to {below - 1}{also}"
    return _first_outside("label", y, below, ignored, rule)


def _first_outside(
    what: Literal["input", "label"], array: AnyArray, below: int, ignored: int | None, rule: str
) -> OutOfRange | None:
    """The first element that is neither in [0, below) nor `ignored`."""
    values = array.reshape(-1)
    # Nearly always everything is right, and one pass without a copy says so: what is negative is
    # huge without its sign.
    if values.view(f"u{values.dtype.itemsize}").max(initial=0) < below:
        return None
    outside = (values < 0) | (values >= below)  # type: ignore[operator]
    if ignored is not None:
        outside &= values != ignored
    if not outside.any():
        return None
    first = int(outside.argmax())
    place = [int(index) for index in np.unravel_index(first, array.shape)]
    return OutOfRange(what, int(values[first]), place, rule)


def _fit(array: AnyArray, expected: Array, name: str, path: Path) -> AnyArray:
    wanted = np.dtype(expected.dtype)
    # Integers of another width hold the same labels; anything else would change the data.
    if wanted.kind == "i" and array.dtype.kind in "iu" and array.dtype != np.uint64:
        array = array.astype(wanted)
    if array.dtype != wanted:
        raise DataError(
            f"{name!r} of {str(path)!r} has dtype {array.dtype}, the model expects {wanted}",
            hint=f"convert it: {name}.astype('{wanted}')",
        )
    if array.shape[1:] != expected.shape or array.ndim == 0:
        raise DataError(
            f"{name!r} of {str(path)!r} has shape {list(array.shape)}, the model expects "
            f"[examples, {', '.join(map(str, expected.shape))}]".replace(", ]", "]")
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name!r} of {str(path)!r} has values that are not finite")
    return np.ascontiguousarray(array)
