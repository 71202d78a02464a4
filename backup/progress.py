"""What is said while a backup is written or read: a line now and then, on stderr."""

from __future__ import annotations

import sys
import time

EVERY_S = 2.0


class Progress:
    """Counts bytes; says how far it is."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._what = ""
        self._total = self._done = 0
        self._told_s = 0.0

    def begin(self, what: str, total_bytes: int) -> None:
        """Something else is under way; 0: nobody knows how much it is."""
        self._what, self._total, self._done = what, total_bytes, 0
        self._told_s = time.monotonic()

    def moved(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        now_s = time.monotonic()
        if self._quiet or now_s - self._told_s < EVERY_S:
            return
        self._told_s = now_s
        of = f" of {self._total / 1e6:,.0f}" if self._total else ""
        print(f"{self._what}: {self._done / 1e6:,.0f}{of} MB", file=sys.stderr, flush=True)
