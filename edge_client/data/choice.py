"""Which examples are used, and which of them are held out: decided by the content of each.

An example's key is a hash of its inputs. So it stays on its side when others come, go or change
places, when it comes twice, and when its label is corrected: what was trained on in one round
judges a model in none.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import Column, FileRows, LocalDataset, LocalExamples, in_parts

AnyArray = NDArray[np.generic]
_MOVED_ROWS = 256
"""At once: a copy in memory."""


class Key(NamedTuple):
    """Two independent numbers in [0, 2^64)."""

    side: int
    """Below the held-out fraction of 2^64: held out."""
    lot: int
    """The lowest are in the sample."""


def key_of(inputs: bytes | memoryview) -> Key:
    """Of one example's inputs, as the model takes them, little-endian."""
    digest = hashlib.blake2b(inputs, digest_size=16).digest()
    return Key(int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big"))


def keys_of(x: Column) -> Iterator[Key]:
    """Of every example of x[n, ...], in order."""
    for part in in_parts(x):
        little = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
        flat = little.reshape(len(part), -1).view(np.uint8)
        for row in flat:
            yield key_of(row.data)


def is_held_out(key: Key, fraction: float) -> bool:
    """Whether this example judges models and is never trained on."""
    return key.side < int(fraction * 2**64)


class Places:
    """Gives each example that comes one of at most `count_max` places, or none.

    "newest": the last ones; "sample": those whose lots are lowest, whatever the order.
    """

    def __init__(self, count_max: int | None, choice: Literal["newest", "sample"]) -> None:
        self._max, self._sample = count_max, choice == "sample"
        self._heap: list[tuple[int, int]] = []
        self._seen = 0

    def __len__(self) -> int:
        return self._seen if self._max is None else min(self._seen, self._max)

    @property
    def seen(self) -> int:
        """Examples that came."""
        return self._seen

    def take(self, key: Key | None) -> int | None:
        """The place of the next example; who had it before loses it. A sample wants its key."""
        index = self._seen
        self._seen += 1
        if self._max is None:
            return index
        if not self._sample:
            return index % self._max
        assert key is not None
        if index < self._max:
            heapq.heappush(self._heap, (-key.lot, index))
            return index
        if -key.lot <= self._heap[0][0]:
            return None
        return heapq.heapreplace(self._heap, (-key.lot, self._heap[0][1]))[1]


def chosen_rows(
    x: Column, examples_max: int | None, choice: Literal["newest", "sample"]
) -> NDArray[np.int64] | None:
    """Ascending rows of x that are used; None: all of them."""
    if examples_max is None or len(x) <= examples_max:
        return None
    if choice == "newest":
        return np.arange(len(x) - examples_max, len(x))
    places, rows = Places(examples_max, choice), np.zeros(examples_max, np.int64)
    for row, key in enumerate(keys_of(x)):
        place = places.take(key)
        if place is not None:
            rows[place] = row
    return np.sort(rows)


def divided(x: Column, y: Column, held_out_fraction: float) -> LocalDataset:
    """Training and held-out examples. Arrays are put in order in place, to take no more memory."""
    if not held_out_fraction:
        return LocalDataset(LocalExamples(x, y), None)
    sides = (is_held_out(key, held_out_fraction) for key in keys_of(x))
    held_out = np.fromiter(sides, np.bool_, len(x))
    if not held_out.any():
        return LocalDataset(LocalExamples(x, y), None)
    order = (np.flatnonzero(~held_out), np.flatnonzero(held_out))
    (x_training, x_held_out), (y_training, y_held_out) = _parted(x, order), _parted(y, order)
    return LocalDataset(
        LocalExamples(x_training, y_training), LocalExamples(x_held_out, y_held_out)
    )


def used_part(x: AnyArray, rows: NDArray[np.int64] | None) -> AnyArray:
    """These ascending rows of an array, moved to its front; what is behind them is lost."""
    return x if rows is None else _moved(x, rows)


def _parted(column: Column, order: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Iterable[Column]:
    if isinstance(column, FileRows):
        return [column.only(rows) for rows in order]
    behind = column[order[1]]
    front = _moved(column, order[0])
    column[len(front) : len(front) + len(behind)] = behind
    return front, column[len(front) : len(front) + len(behind)]


def _moved(array: AnyArray, rows: NDArray[np.int64]) -> AnyArray:
    """Rows never move backwards, so that none is overwritten before it was moved."""
    for start in range(0, len(rows), _MOVED_ROWS):
        part = rows[start : start + _MOVED_ROWS]
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]
