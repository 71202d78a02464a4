"""Whether a link lives: bytes that move are life, and silence ends it. Pure.

paho's keep-alive takes a link for dead when the answer to its ping is late, and on a slow line
that answer waits behind whatever is being carried. Here the link lives as long as anything comes
in, or the other side's TCP takes what we send. Pings (2 bytes) and other small things do not count
as taken: the kernel of a machine whose broker hangs takes those for ever.
"""

from __future__ import annotations

ANSWER_MS = 5_000
"""A living broker answers within this time."""
TAKEN_BYTES_MIN = 1_000
"""Progress of an upload; more than the small messages between two looks."""
CONFIRM_MS_MIN = 60_000
"""Time to confirm what has been taken, at least."""


class Pulse:
    """Of one connection. The shell tells what it sees, with the time."""

    def __init__(self, keepalive_ms: int, at_ms: int) -> None:
        self._keepalive_ms = keepalive_ms
        self._moved_at_ms = self._pinged_at_ms = self._taken_at_ms = at_ms
        self._taken_bytes = 0

    def heard(self, at_ms: int) -> None:
        """Bytes came in."""
        self._moved_at_ms = at_ms

    def confirmed(self, at_ms: int) -> None:
        """The broker has confirmed a publication, or there is a first one to confirm."""
        self._taken_at_ms = at_ms

    def taken(self, total_bytes: int, at_ms: int) -> None:
        """What the other side's TCP has acknowledged since the connection began."""
        if total_bytes - self._taken_bytes >= TAKEN_BYTES_MIN:
            self._taken_bytes = total_bytes
            self._moved_at_ms = self._taken_at_ms = at_ms

    def ping_is_due(self, at_ms: int) -> bool:
        """Whether to ping now; then it has been done."""
        if at_ms - self._pinged_at_ms < self._keepalive_ms * 3 // 4:
            return False
        self._pinged_at_ms = at_ms
        return True

    def verdict(self, at_ms: int, *, unconfirmed: bool) -> str | None:
        """Why the link is dead, or None."""
        silent_ms = at_ms - self._moved_at_ms
        if silent_ms >= self._keepalive_ms + ANSWER_MS:
            return f"nothing has moved on the link for {silent_ms // 1000} s"
        waited_ms = at_ms - self._taken_at_ms
        if unconfirmed and waited_ms >= max(2 * self._keepalive_ms, CONFIRM_MS_MIN):
            return f"the broker has confirmed nothing for {waited_ms // 1000} s"
        return None
