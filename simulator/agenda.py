"""Virtual time: one heap of events, ordered by time and then by who came first."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

START_MS = 1_000_000
"""The clock does not begin at 0: nothing may rely on that."""


def generator(seed: int, *names: object) -> random.Random:
    """A generator of its own for each component: more draws of one leave the others alone.

    Derived by SHA-256, never by `hash`, which differs from process to process.
    """
    text = "/".join(str(name) for name in (seed, *names))
    return random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311


class Agenda:
    """What is going to happen, and the time."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.steps = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = count()

    def at(self, at_ms: int, action: Callable[..., None], *arguments: object) -> None:
        """Do this at a time, or now if that has passed; after what was planned before for then."""
        entry = (max(at_ms, self.now_ms), next(self._sequence), action, arguments)
        heappush(self._heap, entry)

    def after(self, delay_ms: float, action: Callable[..., None], *arguments: object) -> None:
        """Do this in a while."""
        self.at(self.now_ms + int(delay_ms), action, *arguments)

    def step(self, until_ms: int) -> bool:
        """Do what comes next; False: nothing does before `until_ms`, and it is that late now."""
        if not self._heap or self._heap[0][0] > until_ms:
            self.now_ms = until_ms
            return False
        self.now_ms, _, action, arguments = heappop(self._heap)
        self.steps += 1
        action(*arguments)
        return True
