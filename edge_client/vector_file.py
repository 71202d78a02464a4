"""Float32 vectors on disk behind a header, written one after another: to save a large model takes
no memory for copies of it.

    file = SHA-256 of the rest (32 bytes) | size of the header (4 bytes, little-endian)
         | header | float32 values, little-endian
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedtide.files import read_checked, write_atomically
from fedtide.vectors import Vector

_DIGEST_BYTES, _SIZE_BYTES = 32, 4


def write_vectors(path: Path, header: bytes, vectors: Iterable[Vector]) -> None:
    """On disk, in place of what was there, when this returns.

    Raises:
        StateError: the disk is full or failing; what was there is intact.
    """
    size = len(header).to_bytes(_SIZE_BYTES, "little")
    content: list[bytes | memoryview] = [size, header, *map(raw_bytes, vectors)]
    write_atomically(path, sha256_of(content), *content)


def read_vectors(path: Path) -> tuple[bytes, Vector] | None:
    """The header and the float32 values of all vectors; None: damaged.

    Raises:
        FileNotFoundError: there is no such file.
        StateError: it may not be read.
    """
    raw = read_checked(path)
    content = memoryview(raw)[_DIGEST_BYTES:]
    start = _SIZE_BYTES + int.from_bytes(content[:_SIZE_BYTES], "little")
    if sha256_of([content]) != raw[:_DIGEST_BYTES] or (len(content) - start) % 4:
        return None
    values = np.frombuffer(content[start:], "<f4").astype(np.float32, copy=False)
    return bytes(content[_SIZE_BYTES:start]), values


def split_values(values: Vector, sizes: tuple[int, ...]) -> list[Vector] | None:
    """One vector for each of `sizes`; None: they do not add up to what is there."""
    if not sizes or min(sizes) < 0 or sum(sizes) != len(values):
        return None
    return np.split(values, np.cumsum(sizes)[:-1])


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array, little-endian, without a copy where it is contiguous."""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data


def sha256_of(parts: Iterable[bytes | memoryview]) -> bytes:
    """SHA-256 of all parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
