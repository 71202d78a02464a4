"""How much may be under way on a link at once: as much as keeps it busy, and little more. Pure.

The only thing measured is the wait: from handing a chunk over (or asking for it) until it is
confirmed (or here). The shortest wait of a connection is the way itself; what a later one takes
longer is the queue in front of the line. The window grows while that queue is below three quarters
of `QUEUE_MS` (doubling until it first is not, then by an eighth), stays up to `QUEUE_MS`, and
shrinks in proportion beyond it, once for all that was under way together. So, on a line of constant
rate (to 12 Mbit/s) and round trip (to 0.9 s), once settled (tests/property/test_window.py):

- a chunk finds at most `QUEUE_MS` (a quarter of the shortest keep-alive, 5 s) in front of it, or
  the floor, and one block more;
- the line carries chunks nine tenths of the time or more;
- a chunk, a quarter of the window, takes a quarter of about a second, or is a single block.

A connection's way is taken to stay as long as it is: if it grows by more than `QUEUE_MS` while the
connection lives, the window stays at its floor (two blocks in that time) until the next one. A base
with a short history, as LEDBAT keeps, would take a queue that we make ourselves for the way: at the
floor of a slow line there always is one.

After a delay-based tradition: TCP Vegas (Brakmo and Peterson 1995), LEDBAT (RFC 6817).
"""

from __future__ import annotations

from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX

QUEUE_MS = 1_250
"""Longest queue in front of the line that we make."""
FLOOR_BYTES = 2 * BLOCK_BYTES
"""One block on its way, and one behind it so that the line does not wait for a confirmation."""
WINDOW_BYTES_MAX = 16 * CHUNK_BLOCKS_MAX * BLOCK_BYTES
"""1.8 MB: 25 Mbit/s over a satellite (600 ms)."""
ENOUGH_BYTES = 4 * CHUNK_BLOCKS_MAX * BLOCK_BYTES
ENOUGH_BYTES_MS = 10_000
"""Beyond `ENOUGH_BYTES` a link that carries 10 MB/s is fast enough: brokers hold what is more."""
_SHRINK_MIN = 0.25


class Window:
    """Of one link in one direction. Tokens name what is under way."""

    def __init__(self, floor_bytes: int = FLOOR_BYTES) -> None:
        self._floor = floor_bytes
        self.bytes = floor_bytes
        """May be under way at once."""
        self._sizes: dict[int, int] = {}
        self._base_ms: int | None = None
        self._doubling = True
        self._judged: set[int] = set()
        """Under way when the window shrank last: they saw the queue that it has answered."""

    @property
    def under_way_bytes(self) -> int:
        """Handed over and not confirmed."""
        return sum(self._sizes.values())

    def has_room(self, size: int) -> bool:
        """Whether this much more may go; one thing always may."""
        return not self._sizes or self.under_way_bytes + size <= self.bytes

    def sent(self, token: int, size: int) -> None:
        """This much was handed over."""
        self._sizes[token] = size

    def confirmed(self, token: int, waited_ms: int | None, *, more: bool) -> None:
        """It arrived, after this wait (None: not measured); `more`: others wait for room."""
        size = self._sizes.pop(token, 0)
        if token in self._judged:
            self._judged.remove(token)
            return
        if waited_ms is None or not size:
            return
        if self._base_ms is None:
            self._base_ms = waited_ms
            return
        self._base_ms = min(self._base_ms, waited_ms)
        queue_ms = waited_ms - self._base_ms
        if queue_ms > QUEUE_MS * 3 // 4:
            self._doubling = False
        if queue_ms > QUEUE_MS:
            shrunk = int(self.bytes * max(_SHRINK_MIN, QUEUE_MS / queue_ms))
            self.bytes = max(self._floor, shrunk)
            self._judged = set(self._sizes)
        elif more and queue_ms <= QUEUE_MS * 3 // 4 and not self._is_enough(waited_ms):
            step = size if self._doubling else max(size // 8, BLOCK_BYTES * size // self.bytes)
            self.bytes = min(WINDOW_BYTES_MAX, self.bytes + step)

    def _is_enough(self, waited_ms: int) -> bool:
        return self.bytes >= max(ENOUGH_BYTES, ENOUGH_BYTES_MS * waited_ms)

    def link_lost(self) -> None:
        """Nothing is under way; the next link may be another, and slower."""
        self._sizes.clear()
        self._judged.clear()
        self._base_ms = None
        self._doubling = True
        self.bytes = max(self._floor, self.bytes // 2)
