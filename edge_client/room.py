"""When to try again what found the disk full: after five seconds, then ever more rarely."""

from __future__ import annotations

import logging

from fedtide.errors import StateError

_log = logging.getLogger(__name__)

ROOM_MS, ROOM_MS_MAX = 5_000, 300_000
"""First and longest pause."""


class Room:
    """On one disk, for one purpose."""

    def __init__(self) -> None:
        self.retry_at_ms: int | None = None
        """None: there is room, as far as we know."""
        self._tries = 0

    def missing(self, error: StateError, at_ms: int) -> None:
        """There is none.

        Raises:
            StateError: `error`, if it is about anything else than room.
        """
        if not error.no_room:
            raise error
        pause_ms = min(ROOM_MS << self._tries, ROOM_MS_MAX)
        self._tries = min(self._tries + 1, 8)
        self.retry_at_ms = at_ms + pause_ms
        _log.warning("%s; trying again in %d s", error.args[0], pause_ms // 1000)

    def found(self) -> None:
        """Something was written."""
        self.retry_at_ms, self._tries = None, 0
