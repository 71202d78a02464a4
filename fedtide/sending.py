"""Sending blobs as chunks, a few at a time: the same for both directions.

At most `WINDOW` chunks are with the broker at once, so that a large blob never piles up in memory
and a slow link's keepalive is never starved. What the broker confirmed may still be lost; the
receiver asks again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fedtide.blobs import blocks_count, clip, make_chunk, split
from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX, CHUNK_HEADER_BYTES_MAX
from fedtide.messages import BlobRef, Chunk, Range

WINDOW = 3


def chunk_blocks_for(packet_bytes_max: int) -> int:
    """Most blocks in a chunk that a broker with this packet limit takes; below 1: not even one."""
    return min(CHUNK_BLOCKS_MAX, (packet_bytes_max - CHUNK_HEADER_BYTES_MAX) // BLOCK_BYTES)


class _Job(NamedTuple):
    ref: BlobRef
    path: Path
    piece: Range


class ChunkSender:
    """A queue of chunks; `publish` says one and returns its token, or None without a link."""

    def __init__(self, publish: Callable[[Chunk], int | None]) -> None:
        self._publish = publish
        self._queue: OrderedDict[tuple[str, int], _Job] = OrderedDict()
        self._unconfirmed: set[int] = set()
        self.chunk_blocks = CHUNK_BLOCKS_MAX

    def send(self, ref: BlobRef, path: Path, ranges: Iterable[Range]) -> None:
        """Queue these blocks of the blob at `path`; those already queued stay where they are."""
        inside = clip(ranges, blocks_count(ref.size_bytes))
        for piece in split(inside, self.chunk_blocks):
            self._queue.setdefault((ref.digest, piece[0]), _Job(ref, path, piece))
        self._fill()

    def delivered(self, token: int) -> None:
        """The broker took a chunk (tokens of other messages are ignored)."""
        if token in self._unconfirmed:
            self._unconfirmed.remove(token)
            self._fill()

    def forget(self, digest: str) -> None:
        """Send no more of this blob."""
        for key in [key for key in self._queue if key[0] == digest]:
            del self._queue[key]

    def link_lost(self) -> None:
        """Nothing queued will be confirmed; the receiver will ask again."""
        self._queue.clear()
        self._unconfirmed.clear()

    def busy(self) -> bool:
        """Whether anything is still to be sent or confirmed."""
        return bool(self._queue or self._unconfirmed)

    def _fill(self) -> None:
        while self._queue and len(self._unconfirmed) < WINDOW:
            _, job = self._queue.popitem(last=False)
            try:
                chunk = make_chunk(job.ref, job.path, job.piece)
            except OSError:
                continue  # the blob has been discarded meanwhile
            token = self._publish(chunk)
            if token is None:
                self.link_lost()
                return
            self._unconfirmed.add(token)
