"""The newest number heard of each key: a message that does not go beyond it was heard before.

The thread that brings messages asks and advances them; the one that handles messages writes them
with the next transaction, hence with, or before, whatever follows from the message.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping


class Marks:
    """See the module."""

    def __init__(self, written: Mapping[str, int]) -> None:
        self._marks = dict(written)
        self._unwritten: set[str] = set()
        self._lock = threading.Lock()

    def advance(self, signer: str, number: int) -> int | None:
        """Hear this number of a key; the newest one heard, if it does not go beyond that."""
        with self._lock:
            newest = self._marks.get(signer, 0)
            if number <= newest:
                return newest
            self._marks[signer] = number
            self._unwritten.add(signer)
            return None

    def unwritten(self) -> dict[str, int]:
        """What the database does not know yet."""
        with self._lock:
            return {signer: self._marks[signer] for signer in self._unwritten}

    def written(self, marks: Mapping[str, int]) -> None:
        """The database knows these."""
        with self._lock:
            self._unwritten -= {key for key, mark in marks.items() if self._marks[key] == mark}
