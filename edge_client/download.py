"""One blob on its way to this device, fetched from the broker's retained chunks.

The device pulls: it subscribes to a few chunk topics at a time and gets each chunk at once, at its
own pace. Chunks that do not come are asked for again: first from the broker, then from the
coordinator. What has arrived is on disk, so a reboot costs nothing.
"""

from __future__ import annotations

from fedtide.blobs import BlobStore, split
from fedtide.messages import BlobRef, Chunk, Want
from fedtide.topics import Topics
from fedtide.transport import Transport

WINDOW = 4
"""Chunks asked for at once: what the broker holds in memory for one slow device."""
STALL_MS = 2_000
"""Without a chunk for this long, ask again; doubles up to `STALL_MS_MAX`."""
STALL_MS_MAX = 30_000


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
        self._asked: set[int] = set()
        self._arrived: list[int] = []
        self._stalls = 0
        self._failures = 0
        self._progress_at_ms = 0
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
        self._progress_at_ms = at_ms
        self._ask()

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
        self._progress_at_ms = at_ms
        self._stalls = 0
        start = chunk.first_block // self.grid * self.grid
        if start in self._asked:
            self._asked.remove(start)
            self._arrived.append(start)
        if not self._partial.complete:
            if len(self._asked) <= WINDOW // 2:
                self._ask()
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
        return self._progress_at_ms + min(STALL_MS << self._stalls, STALL_MS_MAX)

    def stalled(self, at_ms: int) -> Want:
        """Nothing came for too long: subscribe again, and ask the coordinator."""
        self._stalls = min(self._stalls + 1, 8)
        self._progress_at_ms = at_ms
        self._asked.clear()
        self._ask()
        return Want(self.ref.digest, tuple(self._partial.missing()[:WINDOW]))

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

    def _ask(self) -> None:
        """Subscribe to the next chunk topics, `WINDOW` at once; leave those that have arrived."""
        self._link.unsubscribe(self._names(self._arrived))
        self._arrived.clear()
        fresh: list[int] = []
        for first, _ in split(self._partial.missing(), self.grid):
            start = first // self.grid * self.grid
            if len(self._asked) >= WINDOW:
                break
            if start not in self._asked:
                self._asked.add(start)
                fresh.append(start)
        self._link.subscribe(self._names(fresh), confirm=False)

    def _names(self, starts: list[int]) -> list[str]:
        return [self._topics.chunk(self.ref.digest, start) for start in starts]
