"""The IDX format, in which MNIST comes: big-endian header, then bytes.

http://yann.lecun.com/exdb/mnist: two zero bytes, the type (8: unsigned byte), the number of
dimensions, each dimension as uint32, the values in C order.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import DataError

UNSIGNED_BYTE = 8
BYTES_MAX = 1 << 30
"""Of the values: MNIST's largest file has 47 MB."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of a file, read-only: `path` itself, or compressed by gzip with .gz after it.

    A plain file is mapped, not read: it costs no time, and processes share its memory.

    Raises:
        FileNotFoundError: there is neither.
        DataError: it is damaged, or something else.
    """
    try:
        if path.exists() or not _compressed(path).exists():
            return _mapped(path, dimensions)
        return _decompressed(_compressed(path), dimensions)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise DataError(f"{str(path)!r} cannot be read: {exc}") from exc


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _mapped(path: Path, dimensions: int) -> NDArray[np.uint8]:
    header = 4 + 4 * dimensions
    with path.open("rb") as file:
        shape = _shape(path, file.read(header), dimensions)
    there, said = path.stat().st_size - header, math.prod(shape)
    if there != said:
        raise _wrong_size(path, shape, "more" if there > said else f"{there:,}")
    if not said:
        return np.zeros(shape, np.uint8)  # nothing cannot be mapped
    return np.memmap(path, np.uint8, "r", header, shape)


def _decompressed(path: Path, dimensions: int) -> NDArray[np.uint8]:
    stream = zlib.decompressobj(wbits=31)  # gzip, with its checksum
    try:
        head = stream.decompress(path.read_bytes(), 4 + 4 * dimensions)
        shape = _shape(path, head, dimensions)
        # One more byte than there may be: so the end, and its checksum, are seen.
        values = stream.decompress(stream.unconsumed_tail, math.prod(shape) + 1)
    except zlib.error as exc:
        raise DataError(f"{str(path)!r} is damaged: {exc}", hint=_AGAIN) from exc
    if len(values) != math.prod(shape):
        there = "more" if len(values) > math.prod(shape) else f"{len(values):,}"
        raise _wrong_size(path, shape, there)
    if not stream.eof:
        raise DataError(f"{str(path)!r} is damaged: the end is missing", hint=_AGAIN)
    return np.frombuffer(values, np.uint8).reshape(shape)


_AGAIN = "get it again: delete it and use --download"


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    expected = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if header[:4] != expected or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"{str(path)!r} begins with {header[:4].hex(' ') or 'nothing'}, expected "
            f"{expected.hex(' ')}: IDX, unsigned bytes, {dimensions} dimensions",
            hint=_AGAIN,
        )
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", header[4:])
    if math.prod(shape) > BYTES_MAX:
        raise DataError(
            f"{str(path)!r} is said to have the shape {list(shape)}, {math.prod(shape):,} bytes, "
            f"at most {BYTES_MAX:,} are read",
            hint=_AGAIN,
        )
    return shape


def _wrong_size(path: Path, shape: tuple[int, ...], there: str) -> DataError:
    return DataError(
        f"{str(path)!r} is damaged: its shape {list(shape)} takes {math.prod(shape):,} bytes, "
        f"there are {there}",
        hint=_AGAIN,
    )
