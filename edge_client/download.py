"""One blob on its way to this device, fetched from the broker's retained chunks.

The device pulls: it subscribes to a few chunk topics at a time and gets each chunk at once, at its
own pace: as many as keep the link busy (`fedtide.window`). Chunks that do not come are asked for
again, from the broker and from the coordinator, but only when nothing comes in at all: on a slow
link one chunk takes a while. What has arrived is on disk, so a reboot costs nothing.
"""

from __future__ import annotations

from fedtide.blobs import BlobStore, split
from fedtide.limits import BLOCK_BYTES
from fedtide.messages import BlobRef, Chunk, Want
from fedtide.topics import Topics
from fedtide.transport import Transport
from fedtide.window import Window

WANT_RANGES = 4
"""Ranges that the coordinator is asked for at once."""
STALL_MS = 2_000
"""With nothing coming in for this long, ask again; doubles up to `STALL_MS_MAX`."""
STALL_MS_MAX = 30_000
SILENT_MS_MAX = 120_000
"""Without a new chunk for this long, ask again even though something is coming in."""


class Download:
    """See the module. `done` once the blob is in the store."""

    def __init__(
        self, ref: BlobRef, chunk_blocks: int, store: BlobStore, link: Transport, topics: Topics
    ) -> None:
        self.ref = ref
        self.done = store.has(ref.digest)
        self.grid = chunk_blocks
        self.started = False
        self._link = link
        self._topics = topics
        self._asked: dict[int, int] = {}
        """First block of a chunk that was asked for, and when."""
        self._cell_bytes = chunk_blocks * BLOCK_BYTES
        self._window = Window(2 * self._cell_bytes)
        self._arrived: list[int] = []
        self._stalls = 0
        self._failures = 0
        self._progress_at_ms = 0
        self._moved_at_ms = 0
        if not self.done:
            self._partial = store.open_partial(ref)

    def start(self, at_ms: int) -> None:
        """Ask for what is missing; also after a new link. May be `done` at once.

        Raises:
            StateError: the disk is full or failing.
        """
        self.started = True
        if self.done:
            return
        if self._partial.complete:  # the last life ended just before the digest was checked
            self.done = self._partial.finish()
            if self.done:
                return
        self._asked.clear()
        self._arrived.clear()
        self._window.link_lost()
        self._progress_at_ms = self._moved_at_ms = at_ms
        self._ask(at_ms)

    def arriving(self, at_ms: int) -> None:
        """Bytes are coming in: a chunk, or what stands before it in the broker's queue."""
        self._moved_at_ms = at_ms

    def chunk(self, chunk: Chunk, at_ms: int) -> str | None:
        """A chunk of this blob came; why it is refused, or None.

        Raises:
            StateError: the disk is full or failing.
        """
        if self.done:
            return None
        before = self._partial.arrived_blocks()
        reason = self._partial.accept(chunk)
        if reason is not None or self._partial.arrived_blocks() == before:
            return reason  # a duplicate is no progress
        self._progress_at_ms = self._moved_at_ms = at_ms
        self._stalls = 0
        start = chunk.first_block // self.grid * self.grid
        if start in self._asked:
            waited_ms = at_ms - self._asked.pop(start)
            self._window.confirmed(start, waited_ms, more=True)
            self._arrived.append(start)
        if not self._partial.complete:
            self._ask(at_ms)
            return None
        self.abandon()
        self.done = self._partial.finish()
        if not self.done:
            # Not at once: what is retained may be wrong for long.
            self._failures = min(self._failures + 1, 8)
            self._stalls = self._failures
            reason = "the blob fails its digest; all of it will be fetched again"
        return reason

    def deadline_at_ms(self) -> int:
        """When to call `stalled`."""
        silent_at_ms = self._moved_at_ms + min(STALL_MS << self._stalls, STALL_MS_MAX)
        return min(silent_at_ms, self._progress_at_ms + SILENT_MS_MAX)

    def stalled(self, at_ms: int) -> Want:
        """Nothing came for too long: subscribe again, and ask the coordinator."""
        self._stalls = min(self._stalls + 1, 8)
        self._progress_at_ms = self._moved_at_ms = at_ms
        self._asked.clear()
        self._window.link_lost()
        self._ask(at_ms)
        return Want(self.ref.digest, tuple(self._partial.missing()[:WANT_RANGES]))

    def arrived_blocks(self) -> int:
        """How many blocks are here."""
        return self._partial.arrived_blocks()

    def progress(self) -> str:
        """How far it is, for a person to read."""
        here, total = self._partial.arrived_blocks(), self._partial.blocks
        waited = f", asked {self._stalls + 1} times" if self._stalls else ""
        return f"fetching {self.ref.digest[:12]}: {here} of {total} blocks{waited}"

    def abandon(self) -> None:
        """No longer needed."""
        self._link.unsubscribe(self._names([*self._arrived, *sorted(self._asked)]))
        self._asked.clear()
        self._arrived.clear()

    def _ask(self, at_ms: int) -> None:
        """Subscribe to the next chunk topics; leave those that have arrived."""
        fresh: list[int] = []
        for first, _ in split(self._partial.missing(), self.grid):
            if not self._window.has_room(self._cell_bytes):
                break
            start = first // self.grid * self.grid
            if start not in self._asked:
                self._asked[start] = at_ms
                self._window.sent(start, self._cell_bytes)
                fresh.append(start)
        self._link.unsubscribe(self._names(self._arrived))
        self._arrived.clear()
        self._link.subscribe(self._names(fresh), confirm=False)

    def _names(self, starts: list[int]) -> list[str]:
        return [self._topics.chunk(self.ref.digest, start) for start in starts]
