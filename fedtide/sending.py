"""Sending blobs as chunks, a few at a time: the same for both directions.

What is under way at once follows the link (`fedtide.window`), so that a large blob never piles up
in memory, a slow link's keep-alive is never starved, and a cut costs little. What the broker
confirmed may still be lost; the receiver asks again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fedtide.blobs import blocks_count, clip, make_chunk, split, without
from fedtide.errors import BrokerError
from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX, CHUNK_HEADER_BYTES_MAX
from fedtide.messages import BlobRef, Chunk, Range
from fedtide.window import Window


def chunk_blocks_for(packet_bytes_max: int) -> int:
    """Most blocks in a chunk that a broker with this packet limit takes.

    Raises:
        BrokerError: not even one.
    """
    blocks = min(CHUNK_BLOCKS_MAX, (packet_bytes_max - CHUNK_HEADER_BYTES_MAX) // BLOCK_BYTES)
    if blocks < 1:
        raise BrokerError(
            f"the broker takes packets of {packet_bytes_max} bytes at most, "
            f"and one block needs {BLOCK_BYTES + CHUNK_HEADER_BYTES_MAX}",
            hint="raise its limit (Mosquitto: max_packet_size) to 20,000 or more",
        )
    return blocks


class _Job(NamedTuple):
    ref: BlobRef
    path: Path
    piece: Range


class ChunkSender:
    """A queue of blocks; `publish` says a chunk and returns its token, or None without a link.

    Chunks are as large as the link carries in a moment, or, with a `grid`, exactly its cells.
    """

    def __init__(self, publish: Callable[[Chunk], int | None], *, grid: bool = False) -> None:
        self._publish = publish
        self._grid = grid
        self._queue: deque[_Job] = deque()
        self._under_way: dict[int, _Job] = {}
        self._window = Window()
        self._limit = _SizeLimit()
        self._unreadable: set[str] = set()
        self.chunk_blocks = CHUNK_BLOCKS_MAX
        """Most blocks in a chunk; with a grid, its cell."""

    def send(self, ref: BlobRef, path: Path, ranges: Iterable[Range]) -> None:
        """Queue these blocks of the blob at `path`; but not those queued or under way already."""
        wanted = clip(ranges, blocks_count(ref.size_bytes))
        coming = [
            job.piece
            for job in (*self._under_way.values(), *self._queue)
            if job.ref.digest == ref.digest
        ]
        wanted = without(wanted, coming)
        self._limit.wanted(ref.digest, wanted)
        self._queue.extend(_Job(ref, path, piece) for piece in wanted)
        self._fill()

    def delivered(self, token: int, waited_ms: int | None = None) -> str | None:
        """The broker took a chunk after this time (tokens of other messages are ignored).

        The digest of the blob of which nothing is left to send, if so.
        """
        job = self._under_way.pop(token, None)
        if job is None:
            return None
        self._limit.confirmed(job.ref.digest, job.piece)
        self._window.confirmed(token, waited_ms, more=bool(self._queue))
        self._fill()
        return None if self.busy(job.ref.digest) else job.ref.digest

    def forget(self, digest: str) -> None:
        """Send no more of this blob."""
        self._unreadable.discard(digest)
        self._queue = deque(job for job in self._queue if job.ref.digest != digest)
        self._limit.forget(digest)

    def take_unreadable(self) -> set[str]:
        """Digests of blobs that were to be sent and are gone or cannot be read; told once."""
        unreadable, self._unreadable = self._unreadable, set()
        return unreadable

    def pause(self) -> None:
        """Nobody listens: send no more until somebody asks again."""
        self._queue.clear()

    def link_lost(self) -> None:
        """Nothing queued will be confirmed; the receiver will ask again."""
        self._limit.link_lost(job.piece for job in self._under_way.values())
        self._queue.clear()
        self._under_way.clear()
        self._window.link_lost()

    def busy(self, digest: str | None = None) -> bool:
        """Whether anything (of this blob) is still to be sent or confirmed."""
        jobs = (*self._under_way.values(), *self._queue)
        return any(digest is None or job.ref.digest == digest for job in jobs)

    def _fill(self) -> None:
        while self._queue:
            ref, path, (first, count) = self._queue[0]
            size = self._next_blocks(first, count)
            if not self._window.has_room(size * BLOCK_BYTES):
                return
            self._queue.popleft()
            job = _Job(ref, path, (first, size))
            if size < count:
                self._queue.appendleft(_Job(ref, path, (first + size, count - size)))
            try:
                chunk = make_chunk(ref, path, job.piece)
            except OSError:
                self.forget(ref.digest)
                self._unreadable.add(ref.digest)
                continue
            token = self._publish(chunk)
            if token is None:
                self.link_lost()
                return
            self._under_way[token] = job
            self._window.sent(token, size * BLOCK_BYTES)

    def _next_blocks(self, first: int, count: int) -> int:
        """Blocks in the next chunk: to the end of its cell, or a quarter of a window."""
        if self._grid:
            return split([(first, count)], self.chunk_blocks)[0][1]
        quarter = max(1, self._window.bytes // (4 * BLOCK_BYTES))
        return min(count, quarter, self.chunk_blocks, self._limit.blocks)


class _SizeLimit:
    """The packet limit of a broker that does not tell it: found out by what goes wrong.

    MQTT 3.1.1 has no word for it. Mosquitto confirms what is too large and drops it, or hangs up.
    So: chunks that were confirmed and are wanted again, twice, must be smaller; and so must be
    those larger than any that was ever confirmed, if the link breaks under them, twice.
    """

    def __init__(self) -> None:
        self.blocks = CHUNK_BLOCKS_MAX
        self._taken: dict[str, list[Range]] = {}
        self._repeats: dict[str, int] = {}
        self._largest = 1
        self._breaks = 0

    def confirmed(self, digest: str, piece: Range) -> None:
        self._taken.setdefault(digest, []).append(piece)
        if piece[1] > self._largest:
            self._largest, self._breaks = piece[1], 0

    def wanted(self, digest: str, ranges: list[Range]) -> None:
        """These blocks will be sent (again)."""
        taken = self._taken.get(digest, [])
        left = [piece for piece in taken if without([piece], ranges) == [piece]]
        again = [count for first, count in taken if (first, count) not in left]
        if again:
            self._taken[digest] = left
            self._repeats[digest] = self._repeats.get(digest, 0) + 1
            if self._repeats[digest] > 1:
                self.blocks = max(1, min(self.blocks, max(again) // 2))

    def forget(self, digest: str) -> None:
        self._taken.pop(digest, None)
        self._repeats.pop(digest, None)

    def link_lost(self, pieces: Iterable[Range]) -> None:
        if any(count > self._largest for _, count in pieces):
            self._breaks += 1
            if self._breaks > 1:
                self.blocks = min(self.blocks, self._largest)
        self._taken.clear()  # what the cut took is no sign of a limit
