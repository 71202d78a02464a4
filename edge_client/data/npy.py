"""Two .npy files, inputs and labels, larger than memory if need be: read where they are used."""

from __future__ import annotations

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_client.data import Loaded, Problems, file_stamp
from edge_client.data.arrays import array_text, left_out
from edge_client.data.choice import chosen_rows, divided
from edge_client.data.config import DataConfig
from edge_client.data.rows import FileRows, rows_of_part
from fedtide.dataset import check_counts, check_kind, check_values, open_data
from fedtide.errors import DataError
from fedtide.manifest import Array, Manifest


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int


class NpyFiles:
    """See the module."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        assert config.labels_path is not None
        self._config = config
        self._paths = (config.path, config.labels_path)

    def stamp(self) -> Hashable:
        """Of both files."""
        path, labels_path = self._paths
        return file_stamp(path), file_stamp(labels_path, "labels_path")

    def describe(self, problems: Problems, rows_max: int | None = None) -> dict[str, Any]:
        """Both arrays, as their headers say."""
        del problems, rows_max  # arrays are taken whole or not at all
        headers = {path.name: _header(path) for path in self._paths}
        return {"arrays": {name: array_text(h.shape, h.dtype) for name, h in headers.items()}}

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """Checked in parts; nothing of them stays in memory."""
        del problems  # arrays are taken whole or not at all
        config, source = self._config, repr(str(self._paths[0]))
        x = _rows(self._paths[0], manifest.inputs, "x", config.divisor)
        y = _rows(self._paths[1], manifest.labels, "y", None)
        check_counts(len(x), len(y), source, ("x", "y"))
        at_once = rows_of_part(x, y)
        for start in range(0, len(x), at_once):
            part = slice(start, start + at_once)
            check_values(x[part], y[part], manifest, source, first=start)
        rows = chosen_rows(x, config.examples_max, config.choice)
        notes = () if rows is None else (left_out(len(x), config),)
        if rows is not None:
            x, y = x.only(rows), y.only(rows)
        return Loaded(divided(x, y, config.held_out_fraction), notes)


def _rows(path: Path, expected: Array, name: str, divisor: float | None) -> FileRows:
    header = _header(path)
    check_kind(header.dtype, header.shape, expected, name, repr(str(path)), divisor)
    try:
        return FileRows(path, header.offset, header.shape, header.dtype, expected, divisor)
    except OSError as exc:
        raise DataError(f"data file {str(path)!r} cannot be read: {exc}") from exc


def _header(path: Path) -> _Header:
    try:
        with open_data(path) as file:
            version = np.lib.format.read_magic(file)
            early = version == (1, 0)
            read = (
                np.lib.format.read_array_header_1_0
                if early
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
            offset = file.tell()
        said, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
        if dtype.hasobject:
            raise ValueError("it holds Python objects, not numbers")
        if fortran and len(shape) > 1:
            raise ValueError("it is in Fortran's order; numpy.ascontiguousarray makes it C's")
        if min(shape, default=0) < 0 or said > there:
            raise ValueError(f"it is said to be {dtype}{list(shape)}, there are {there:,} bytes")
    except DataError:
        raise
    except Exception as exc:  # numpy's parser raises what Python's does
        raise DataError(
            f"data file {str(path)!r} cannot be read: {exc}",
            hint="numpy.save(path, array) writes what is expected",
        ) from exc
    return _Header(shape, dtype, offset)
