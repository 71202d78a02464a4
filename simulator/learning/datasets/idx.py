"""The IDX format, in which MNIST comes: big-endian header, then bytes.

http://yann.lecun.com/exdb/mnist: two zero bytes, the type (8: unsigned byte), the number of
dimensions, each dimension as uint32, the values in C order.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import DataError
from simulator.learning.datasets.files import AGAIN, read_compressed, unreadable

UNSIGNED_BYTE = 8
BYTES_MAX = 1 << 28
"""Of a compressed file's content: MNIST's largest has 47 MB."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of a file, read-only: `path` itself, or compressed by gzip with .gz after it.

    A plain file is mapped, not read: it costs no time, and processes share its memory.

    Raises:
        FileNotFoundError: there is neither.
        DataError: it is damaged, or something else.
    """
    compressed = path.with_name(f"{path.name}.gz")
    if path.exists() or not compressed.exists():
        return _mapped(path, dimensions)
    content = read_compressed(compressed, BYTES_MAX)
    header = 4 + 4 * dimensions
    shape = _shape(compressed, content[:header], len(content) - header, dimensions)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _mapped(path: Path, dimensions: int) -> NDArray[np.uint8]:
    header = 4 + 4 * dimensions
    try:
        with path.open("rb") as file:
            shape = _shape(path, file.read(header), path.stat().st_size - header, dimensions)
        if not math.prod(shape):
            return np.zeros(shape, np.uint8)  # nothing cannot be mapped
        return np.memmap(path, np.uint8, "r", header, shape)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise unreadable(path, exc) from exc


def _shape(path: Path, header: bytes, values: int, dimensions: int) -> tuple[int, ...]:
    expected = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if header[:4] != expected or values < 0:
        raise DataError(
            f"{str(path)!r} begins with {header[:4].hex(' ') or 'nothing'} and has "
            f"{max(0, values + 4 + 4 * dimensions):,} bytes, expected {expected.hex(' ')} "
            f"(IDX, unsigned bytes, {dimensions} dimensions) and more",
            hint=AGAIN,
        )
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", header[4:])
    if math.prod(shape) != values:
        raise DataError(
            f"{str(path)!r} is damaged: its shape {list(shape)} takes {math.prod(shape):,} bytes, "
            f"there are {values:,}",
            hint=AGAIN,
        )
    return shape
