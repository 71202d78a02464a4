"""The numbers of what one key seals: each higher than any before it, over every restart.

They are reserved ahead, so that flash is written once in a thousand messages. A number is at
least the time in ms since the epoch when the reservation was made: should the file be lost, the
clock makes up for it; and where there is no clock (a Pi boots in 1970) the file does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fedtide.errors import DamagedError
from fedtide.generations import Generations

RESERVED = 1_000
"""Numbers that a restart may skip: a second of the clock, which a process needs to start. So
restarts do not outrun it, and of two copies of one identity the one that began last is ahead."""
BEHIND_MS_MAX = 86_400_000
"""A clock that is further ahead was wrong before and is right now, or nothing was said for long:
one write a day is cheap."""
EPOCH_MS_MAX = 2**53
"""In the year 287396."""
_log = logging.getLogger(__name__)


def epoch_ms() -> int:
    """The time that this machine believes in."""
    return min(time.time_ns() // 1_000_000, EPOCH_MS_MAX)


class Sequence:
    """See the module. For one process, and one thread, at a time."""

    def __init__(self, folder: Path, clock_ms: Callable[[], int] = epoch_ms) -> None:
        """Reads what is reserved in `folder`.

        Raises:
            StateError: it may not be read.
        """
        self._generations = Generations(folder / "sequence")
        self._clock_ms = clock_ms
        self._next = self._reserved = max(self._load(), 1)

    def _load(self) -> int:
        try:
            number = int(self._generations.load() or b"0")
            if number > EPOCH_MS_MAX:
                raise ValueError(f"number {number} is reserved, at most {EPOCH_MS_MAX} can be")
            return number
        except (DamagedError, ValueError) as exc:
            _log.error("%s; the clock says where to go on", exc.args[0])
            return 0

    def take(self) -> int:
        """The next number.

        Raises:
            StateError: it cannot be reserved: the disk is full or failing.
        """
        now_ms = self._clock_ms()
        if self._next >= self._reserved or now_ms - self._next > BEHIND_MS_MAX:
            begin = max(self._next, now_ms)
            self._generations.save(b"%d" % (begin + RESERVED))
            self._next, self._reserved = begin, begin + RESERVED
        self._next += 1
        return self._next - 1
