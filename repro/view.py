"""What a person sees of a run: one line that moves on a terminal, else plain lines now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from simulator.learning.models import Version

if TYPE_CHECKING:
    from rich.live import Live

LINES_S = 10.0
"""Between two plain lines."""
SCREEN_S = 0.2
Clock = Callable[[], float]


class Progress:
    """Of one run at a time. It has no thread: workers are forked beside it."""

    def __init__(self, *, plain: bool = False, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._live = None if plain or not sys.stdout.isatty() else _live()
        self._title = ""
        self._first, self._until, self._best = 0, 0.0, 0.0
        self._begun_s = self._told_s = 0.0

    def begin(self, title: str, why: str, done: int, until: float) -> None:
        """A run and why it is next: `done` rounds are on disk (-1: nothing), `until` are
        expected."""
        self._title, self._first, self._until = title, max(done, 0), until
        self._best = 0.0
        self._begun_s = self._told_s = self._clock()
        self.say(f"{title}: {f'goes on after round {done}' if done >= 0 else 'begins'} ({why})")

    def version(self, version: Version) -> None:
        """A new model, or one of those on disk."""
        accuracy = None if version.metrics is None else version.metrics.accuracy
        self._best = max(self._best, accuracy or 0.0)
        now_s = self._clock()
        pause_s = LINES_S if self._live is None else SCREEN_S
        if accuracy is None or now_s - self._told_s < pause_s:
            return
        self._told_s = now_s
        line = self._line(version.version, accuracy, now_s)
        if self._live is None:
            print(line, flush=True)
        else:
            from rich.text import Text

            self._live.update(Text(line), refresh=True)

    def say(self, line: str) -> None:
        """Something that stays."""
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(line, highlight=False, markup=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self, number: int, accuracy: float, now_s: float) -> str:
        line = (
            f"{self._title}: round {number}, accuracy {100 * accuracy:.2f}%, "
            f"best {100 * self._best:.2f}%"
        )
        rounds = number - self._first
        if rounds <= 0:
            return line
        each_s = (now_s - self._begun_s) / rounds
        line += f", {each_s:.2g} s a round"
        left = self._until - number
        return line if left <= 0 else f"{line}, {_duration(left * each_s)} to round {self._until:g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _live() -> Live | None:
    """None: rich is not installed."""
    try:
        from rich.live import Live
    except ModuleNotFoundError:
        return None
    return Live(auto_refresh=False, transient=True)
