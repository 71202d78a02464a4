"""The downlink: blobs published once, as retained chunks under their digest, for every device.

A hundred devices cost one upload, and a device that wakes hours later fetches at once. Brokers
forget: everything is published again on each new connection, and a chunk that a device misses is
published again when it asks.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedtide.blobs import BlobStore, blocks_count, clip, split
from fedtide.failpoints import reach
from fedtide.messages import BlobRef, Chunk, Want, encode
from fedtide.sending import ChunkSender, chunk_blocks_for
from fedtide.topics import Topics
from fedtide.transport import Transport

GRID_BLOCKS = 4
"""Blocks in a retained chunk, where the broker takes as many: a cut costs a device at most one."""
REPEAT_MS_MIN = 1_000
"""A chunk that many devices miss at once is published once in this time."""


class Publisher:
    """Keeps the current blobs retained at the broker."""

    def __init__(self, blobs: BlobStore, link: Transport, topics: Topics) -> None:
        self._blobs = blobs
        self._link = link
        self._topics = topics
        self._offered: dict[str, BlobRef] = {}
        self._repeated_at_ms: dict[tuple[str, int], int] = {}
        self._sender = ChunkSender(self._publish_chunk, grid=True)
        self._sender.chunk_blocks = GRID_BLOCKS

    @property
    def chunk_blocks(self) -> int:
        """The grid of the retained chunks."""
        return self._sender.chunk_blocks

    def connected(self, packet_bytes_max: int) -> None:
        """A new link: publish everything again.

        Raises:
            BrokerError: the broker's packet limit is too small.
        """
        self._sender.link_lost()
        self._sender.chunk_blocks = min(GRID_BLOCKS, chunk_blocks_for(packet_bytes_max))
        for ref in self._offered.values():
            self._send_all(ref)

    def link_lost(self) -> None:
        """Stop sending until `connected`."""
        self._sender.link_lost()

    def offer(self, refs: Iterable[BlobRef]) -> None:
        """Publish exactly these blobs: new ones are sent, others are withdrawn."""
        wanted = {ref.digest: ref for ref in refs}
        for digest, ref in sorted(self._offered.items()):
            if digest not in wanted:
                self._sender.forget(digest)
                self._clear(ref)
        fresh = [ref for digest, ref in wanted.items() if digest not in self._offered]
        self._offered = wanted
        for ref in fresh:
            self._send_all(ref)

    def withdraw(self, refs: Iterable[BlobRef]) -> None:
        """Clear these from the broker, unless they are on offer (again)."""
        for ref in refs:
            if ref.digest not in self._offered:
                self._clear(ref)

    def repeat(self, want: Want, at_ms: int) -> bool:
        """A device misses these blocks: publish them again. False: not a blob on offer."""
        ref = self._offered.get(want.digest)
        if ref is None:
            return False
        last = blocks_count(ref.size_bytes)
        grid = self._sender.chunk_blocks
        for first, _ in split(clip(want.missing, last), grid):
            start = first // grid * grid
            key = (ref.digest, start)
            if at_ms - self._repeated_at_ms.get(key, -REPEAT_MS_MIN) >= REPEAT_MS_MIN:
                self._repeated_at_ms[key] = at_ms
                piece = (start, min(grid, last - start))
                self._sender.send(ref, self._blobs.path(ref.digest), [piece])
        return True

    def delivered(self, token: int, waited_ms: int | None = None) -> None:
        """The broker took a message, after this time."""
        self._sender.delivered(token, waited_ms)

    def _send_all(self, ref: BlobRef) -> None:
        whole = (0, blocks_count(ref.size_bytes))
        self._sender.send(ref, self._blobs.path(ref.digest), [whole])

    def _clear(self, ref: BlobRef) -> None:
        for first, _ in split([(0, blocks_count(ref.size_bytes))], self._sender.chunk_blocks):
            self._link.publish(self._topics.chunk(ref.digest, first), b"", retain=True)
            self._repeated_at_ms.pop((ref.digest, first), None)

    def _publish_chunk(self, chunk: Chunk) -> int | None:
        reach("coordinator: chunk published")
        topic = self._topics.chunk(chunk.digest, chunk.first_block)
        payload = encode(chunk, f"b{chunk.first_block}")
        return self._link.publish(topic, payload, retain=True)
