"""Labelled examples from a file, checked against what the model expects.

The same for a device's local data and for the coordinator's test set. Data are refused whole, with
the first thing that is wrong; nothing is trained on data that do not fit.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import DataError
from fedtide.files import NoFileOfOursError, open_regular
from fedtide.manifest import Array, Manifest
from fedtide.memory_limit import available_bytes

AnyArray = NDArray[np.generic]
_ARCHIVE = (b"PK\x03\x04", b"PK\x05\x06")
"""How an .npz begins, and an empty one. All else numpy takes for a pickle, and advises to trust."""


_PART_BYTES = 1 << 20
"""Of an array that is checked part by part."""
A_FILE = "a file is expected: no folder, no pipe, no device"
WRITTEN_BY = "numpy.savez(path, x=inputs, y=labels) writes what is expected"


class Examples(NamedTuple):
    """x[n, ...] and y[n, ...] in the shapes and dtypes of the manifest's `inputs` and `labels`."""

    x: AnyArray
    y: AnyArray


class Dataset(NamedTuple):
    """Examples to train on, and examples kept apart for evaluation (None: there are none)."""

    training: Examples
    held_out: Examples | None


def load_dataset(path: Path, manifest: Manifest, divisor: float | None = None) -> Dataset:
    """Read an .npz with `x` and `y`, and optionally `x_held_out` and `y_held_out`.

    `divisor`: as in `fitted`.

    Raises:
        DataError: the file is missing, unreadable, empty, or does not fit the manifest.
    """
    arrays, source = read_arrays(path), repr(str(path))
    held_out = None
    training = _named(arrays, ("x", "y"), source, manifest, divisor)
    if "x_held_out" in arrays or "y_held_out" in arrays:
        held_out = _named(arrays, ("x_held_out", "y_held_out"), source, manifest, divisor)
    return Dataset(training, held_out)


def open_data(path: Path) -> BinaryIO:
    """A file of examples, to read it.

    Raises:
        DataError: it cannot be opened, or is something else: a pipe would keep us waiting for ever.
    """
    try:
        return open_regular(path)
    except OSError as exc:
        other = isinstance(exc, NoFileOfOursError)
        raise DataError(
            f"data file {str(path)!r} cannot be read: {exc.strerror}",
            hint=A_FILE if other else "correct the path, or let this user read the file",
        ) from exc


def read_arrays(path: Path) -> dict[str, AnyArray]:
    """Every array of an .npz, by name.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        with open_data(path) as file:
            if file.read(4) not in _ARCHIVE or not zipfile.is_zipfile(file):
                raise ValueError("it is no .npz archive, or not all of one")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                size = sum(member.file_size for member in archive.zip.infolist())
                if size > available_bytes():
                    raise ValueError(f"it takes {size:,} bytes, more memory than there is here")
                return {name: _array(archive, name) for name in archive.files}
    except DataError:
        raise
    except Exception as exc:  # those of numpy, zipfile and zlib share no base class
        raise DataError(
            f"data file {str(path)!r} cannot be read: {exc}",
            hint=WRITTEN_BY,
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


def _named(
    arrays: dict[str, AnyArray],
    names: tuple[str, str],
    source: str,
    manifest: Manifest,
    divisor: float | None,
) -> Examples:
    check_names(arrays, names, source)
    x, y = (arrays[name] for name in names)
    return fit_examples(x, y, manifest, source, names=names, divisor=divisor)


def check_names(arrays: dict[str, AnyArray], names: tuple[str, str], source: str) -> None:
    """Whether arrays of these names are there.

    Raises:
        DataError: one is not.
    """
    for name in names:
        if name not in arrays:
            others = f", only: {', '.join(sorted(arrays))}" if arrays else ""
            raise DataError(f"{source} has no array {name!r}{others}", hint=WRITTEN_BY)


def fit_examples(
    x: AnyArray,
    y: AnyArray,
    manifest: Manifest,
    source: str,
    *,
    names: tuple[str, str] = ("x", "y"),
    divisor: float | None = None,
) -> Examples:
    """x[n, ...] and y[n, ...] as the manifest wants them; `source` and `names` say whose they are.

    Raises:
        DataError: they do not fit, or there are none.
    """
    x = fitted(x, manifest.inputs, names[0], source, divisor)
    y = fitted(y, manifest.labels, names[1], source)
    check_counts(len(x), len(y), source, names)
    check_values(x, y, manifest, source, names=names)
    return Examples(x, y)


def check_counts(inputs: int, labels: int, source: str, names: tuple[str, str]) -> None:
    """As many labels as inputs, and not none.

    Raises:
        DataError: it is not so.
    """
    if inputs != labels:
        raise DataError(
            f"{source} has {inputs:,} {names[0]} but {labels:,} {names[1]}",
            hint=f"{names[0]}[i] and {names[1]}[i] are one example",
        )
    if not inputs:
        raise DataError(f"{source} has no examples: {names[0]} is empty")


def check_values(
    x: AnyArray,
    y: AnyArray,
    manifest: Manifest,
    source: str,
    *,
    names: tuple[str, str] = ("x", "y"),
    first: int = 0,
) -> None:
    """Every value is finite and in the manifest's range; `first` is the index of the first example.

    Raises:
        DataError: naming the first value that is not, and its place.
    """
    for array, name in zip((x, y), names, strict=True):
        place = _first_not_finite(array)
        if place is not None:
            place[0] += first
            raise DataError(
                f"{name!r} of {source} has values that are not finite: {name}{place}",
                hint="leave such examples out, or put numbers there",
            )
    for wrong in (wrong_input(manifest, x), wrong_label(manifest, y)):
        if wrong is not None:
            name = names[0] if wrong.what == "input" else names[1]
            place = [wrong.place[0] + first, *wrong.place[1:]]
            raise DataError(
                wrong.said(f" in {name!r} of {source}, at {name}{place},"), hint=wrong.hint
            )


def _first_not_finite(array: AnyArray) -> list[int] | None:
    """In parts: what is compared takes a quarter of the memory of what it is compared with."""
    if array.dtype.kind != "f":
        return None
    rows = max(1, _PART_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        if not np.isfinite(part).all():
            place = np.unravel_index(int(np.isfinite(part).argmin()), part.shape)
            return [int(place[0]) + start, *map(int, place[1:])]
    return None


class OutOfRange(NamedTuple):
    """The first value that the model does not take."""

    what: Literal["input", "label"]
    value: int
    place: list[int]
    """Its index, the example's first."""
    rule: str
    """What would be right."""

    @property
    def hint(self) -> str | None:
        """What it may come from."""
        return "classes are numbered from 0" if self.what == "label" else None

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


def fitted(
    array: AnyArray, expected: Array, name: str, source: str, divisor: float | None = None
) -> AnyArray:
    """array[n, ...] in shape and dtype of `expected`, converted if that loses nothing; bytes become
    float32 divided by `divisor`, where one is given.

    Raises:
        DataError: another shape, or a dtype that would have to be changed.
    """
    check_kind(array.dtype, array.shape, expected, name, source, divisor)
    return np.ascontiguousarray(converted(array, expected, divisor))


def converted(array: AnyArray, expected: Array, divisor: float | None) -> AnyArray:
    """In the dtype of `expected`, after `check_kind`."""
    wanted = np.dtype(expected.dtype)
    if array.dtype == np.uint8 and wanted.kind == "f" and divisor is not None:
        return np.divide(array, divisor, dtype=np.float32)
    return array.astype(wanted, copy=False)


def check_kind(
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    expected: Array,
    name: str,
    source: str,
    divisor: float | None,
) -> None:
    """Whether such an array can be what is `expected` of it, without a loss.

    Raises:
        DataError: another shape or dtype.
    """
    wanted = np.dtype(expected.dtype)
    pixels = dtype == np.uint8 and wanted.kind == "f"
    # Integers of another width hold the same labels, and so do narrower floats; anything else
    # would change the data.
    narrower = (
        np.can_cast(dtype, wanted, "safe") and dtype.kind in {"i": "iub", "f": "f"}[wanted.kind]
    )
    if not narrower and not (pixels and divisor is not None):
        raise DataError(
            f"{name!r} of {source} has dtype {dtype}, the model expects {wanted}",
            hint="data.divisor = 255 makes bytes numbers from 0 to 1; 1 leaves them as they are"
            if pixels
            else _conversion(dtype, wanted, name),
        )
    if shape[1:] != expected.shape or not shape:
        inner = ", ".join(map(str, expected.shape))
        same = bool(shape) and math.prod(shape[1:]) == math.prod(expected.shape)
        raise DataError(
            f"{name!r} of {source} has shape {list(shape)}, the model expects "
            f"[examples, {inner}]".replace(", ]", "]"),
            hint=f"if the values are in that order: {name}.reshape(-1, {inner})".replace(", )", ")")
            if same
            else "the first axis counts the examples; fedtide inspect shows what the model takes",
        )


def _conversion(dtype: np.dtype[np.generic], wanted: np.dtype[Any], name: str) -> str:
    """How to make it `wanted` where that keeps what it means."""
    if dtype.kind in "iub" or dtype.kind == wanted.kind == "f":
        return f"convert it: {name}.astype('{wanted}')"
    if wanted.kind == "f":
        return "the model takes real numbers"
    return "the model takes whole numbers; classes are numbered from 0"
