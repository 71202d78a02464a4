"""Examples as training sees them: arrays in memory, or rows of a file that is larger."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedtide.dataset import converted
from fedtide.errors import DataError
from fedtide.manifest import Array

AnyArray = NDArray[np.generic]
_PART_BYTES = 1 << 20


class FileRows:
    """Some rows of an array in a file, read and converted when they are asked for.

    Read by position and not mapped: a file that is cut while it is mapped ends the process.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
        expected: Array,
        divisor: float | None,
    ) -> None:
        """The C-contiguous array of `shape` and `dtype` at `offset`, as `expected` by the model.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = _OpenFile(path)
        self._path, self._offset, self._stored = path, offset, dtype
        self._expected, self._divisor = expected, divisor
        self._stamp = self._stamp_now()
        self._rows: NDArray[np.int64] | None = None
        self._count = shape[0]
        self.dtype = np.dtype(expected.dtype)
        self._row_bytes = int(np.prod(expected.shape, dtype=np.int64)) * dtype.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows that are used."""
        return (len(self), *self._expected.shape)

    def __len__(self) -> int:
        return self._count if self._rows is None else len(self._rows)

    def only(self, rows: NDArray[np.int64]) -> FileRows:
        """These rows of it; the file stays open as long as any of them is in use."""
        chosen = object.__new__(FileRows)
        chosen.__dict__.update(self.__dict__)
        chosen._rows = rows if self._rows is None else self._rows[rows]
        return chosen

    def __getitem__(self, which: slice | NDArray[np.int64]) -> AnyArray:
        indices = np.arange(len(self))[which] if isinstance(which, slice) else which
        return self.take(indices)

    def take(
        self,
        indices: NDArray[np.int64],
        axis: int = 0,
        out: AnyArray | None = None,
        mode: str = "raise",
    ) -> AnyArray:
        """As an array's, along its first axis: numpy.take calls it.

        Raises:
            DataError: the file has been changed since it was opened, or cannot be read.
        """
        del axis, mode
        rows = indices if self._rows is None else self._rows[indices]
        buffer = bytearray(len(rows) * self._row_bytes)
        view = memoryview(buffer)
        try:
            for place, (first, count) in _runs(rows):
                part = view[place * self._row_bytes : (place + count) * self._row_bytes]
                self._read(part, self._offset + first * self._row_bytes)
            changed = self._stamp_now() != self._stamp
        except OSError as exc:
            raise DataError(f"{str(self._path)!r} cannot be read: {exc}") from exc
        if changed:
            raise DataError(
                f"{str(self._path)!r} was changed while it was used",
                hint="write a new file beside it, then rename it",
            )
        raw = np.frombuffer(buffer, self._stored).reshape(-1, *self._expected.shape)
        made = converted(raw, self._expected, self._divisor)
        if out is None:
            return made
        out[...] = made
        return out

    def _read(self, part: memoryview, offset: int) -> None:
        while part:
            count = os.preadv(self._file.descriptor, [part], offset)
            if not count:
                raise OSError("it ends too early")
            part, offset = part[count:], offset + count

    def _stamp_now(self) -> tuple[int, int]:
        status = os.fstat(self._file.descriptor)
        return status.st_mtime_ns, status.st_size


class _OpenFile:
    """Closed with the last rows that are in use."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self.descriptor)


Column = AnyArray | FileRows


class LocalExamples(NamedTuple):
    """x[n, ...] and y[n, ...] in the shapes and dtypes of the manifest's `inputs` and `labels`."""

    x: Column
    y: Column


class LocalDataset(NamedTuple):
    """Examples to train on, and examples kept apart for evaluation (None: there are none)."""

    training: LocalExamples
    held_out: LocalExamples | None


def in_parts(column: Column) -> Iterator[AnyArray]:
    """All rows in order, a limited part of a file in memory at once; an array is one part."""
    if not isinstance(column, FileRows):
        yield column
        return
    rows = rows_of_part(column)
    for start in range(0, len(column), rows):
        yield column[start : start + rows]


def rows_of_part(*columns: Column) -> int:
    """How many rows of each make a part."""
    row_bytes = max(_row_bytes(column) for column in columns)
    return max(1, _PART_BYTES // max(1, row_bytes))


def _row_bytes(column: Column) -> int:
    size = int(np.prod(column.shape[1:], dtype=np.int64))
    itemsize: Any = column.dtype.itemsize
    return size * int(itemsize)


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Place, first row and length of each run of neighbours: one read for each."""
    if not len(rows):
        return
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = [0, *ends.tolist()]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield start, (int(rows[start]), end - start)
