"""Blobs on their way to this device, one at a time, in the order they are needed.

A full disk stops nothing but the fetching, which is tried again ever more rarely: what is fetched
is on the network still.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edge_client.download import Download
from edge_client.room import Room
from edge_client.waits import Wait
from fedtide.blobs import BlobStore
from fedtide.errors import StateError
from fedtide.failpoints import reach
from fedtide.limits import CHUNK_BLOCKS_MAX
from fedtide.messages import BlobRef, Chunk, Want
from fedtide.topics import Topics
from fedtide.transport import Transport

_log = logging.getLogger(__name__)


class Fetching:
    """See the module. `start` and `chunk` say whether a blob has been finished by them."""

    def __init__(self, store: BlobStore, link: Transport, topics: Topics) -> None:
        self._store = store
        self._link = link
        self._topics = topics
        self._wanted: list[BlobRef] = []
        self._grid = CHUNK_BLOCKS_MAX
        self._current: Download | None = None
        self._room = Room()
        self.news = 0
        """Chunks that brought something new, in this life of the client."""

    def want(self, refs: Sequence[BlobRef], chunk_blocks: int) -> None:
        """Fetch these blobs, as far as they are not here; what is no longer needed ends."""
        current = self._current
        if current is not None and (current.ref not in refs or chunk_blocks != self._grid):
            current.abandon()
            self._current = None
        self._grid = chunk_blocks
        self._wanted = [ref for ref in refs if not self._store.has(ref.digest)]

    def start(self, at_ms: int, *, again: bool = False) -> bool:
        """Go on with the first blob that is missing; `again`: on a new link.

        Raises:
            StateError: the disk is failing.
        """
        if not self._wanted:
            return False
        self._go_on(at_ms, again=again)
        return self.finished()

    def _go_on(self, at_ms: int, *, again: bool) -> None:
        with self._delayed_by_a_full_disk(at_ms):
            if self._current is None or self._current.ref not in self._wanted:
                self._current = self._open(self._wanted[0])
            if again or not self._current.started:
                self._current.start(at_ms)

    def arriving(self, at_ms: int) -> None:
        """Bytes are coming in."""
        if self._current is not None:
            self._current.arriving(at_ms)

    def chunk(self, chunk: Chunk, at_ms: int) -> bool:
        """A chunk came.

        Raises:
            StateError: the disk is failing.
        """
        download = self._current
        if download is None or download.ref.digest != chunk.digest:
            return False
        before = download.arrived_blocks()
        with self._delayed_by_a_full_disk(at_ms):
            reason = download.chunk(chunk, at_ms)
            reach("client: blob fetched" if download.done else "client: chunk stored")
            if reason is not None:
                _log.warning("%s", reason)
            if download.done or download.arrived_blocks() > before:
                self.news += 1
                self._room.found()
        return self.finished()

    def deadline_at_ms(self) -> int | None:
        """When to call `time_reached`; None: nothing is being fetched."""
        if not self._wanted:
            return None
        if self._room.retry_at_ms is not None:
            return self._room.retry_at_ms
        return None if self._current is None else self._current.deadline_at_ms()

    def time_reached(self, at_ms: int) -> Want | None:
        """The deadline has passed: ask again; what to ask of the coordinator. With room on the
        disk again, a blob may be `finished` at once.

        Raises:
            StateError: the disk is failing.
        """
        if self._room.retry_at_ms is not None:
            self._room.retry_at_ms = None
            self._go_on(at_ms, again=True)
            return None
        if self._current is None:
            return None
        want = self._current.stalled(at_ms)
        _log.info("%s", self._current.progress())
        return want

    def wait(self) -> Wait | None:
        """What it waits for; None: nothing is to be fetched."""
        if not self._wanted:
            return None
        if self._room.retry_at_ms is not None:
            return Wait("the disk is full: fetching waits for room", at_once=True)
        text = "fetching" if self._current is None else self._current.progress()
        return Wait(text, self.news)

    def _open(self, ref: BlobRef) -> Download:
        return Download(ref, self._grid, self._store, self._link, self._topics)

    def finished(self) -> bool:
        """Whether a blob has been finished since this was asked last."""
        if self._current is None or not self._current.done:
            return False
        self._wanted = [ref for ref in self._wanted if ref != self._current.ref]
        self._current = None
        return True

    @contextmanager
    def _delayed_by_a_full_disk(self, at_ms: int) -> Iterator[None]:
        try:
            yield
        except StateError as exc:
            self._room.missing(exc, at_ms)
            if self._current is not None:
                self._current.abandon()
