"""What waits for the coordinator's one thread. What comes from the network finds only so much room.

Without a bound, uploads that arrive faster than they are written pile up here, and memory grows
with the number of devices. With it the network thread waits and reads no more; TCP tells the
broker, which keeps what its own limits allow and drops the rest, and that is asked for again.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TypeVar

from fedtide.transport import LinkEvent, Received, Unsealed

BYTES_MAX = 4_000_000
"""Thirty chunks: enough that the thread that writes them never waits for the network."""
ITEM_BYTES = 512
"""What an item takes beside its payload."""
WAIT_S = 10.0
"""The network thread waits no longer than this: it must still answer the broker's keep-alive."""
T = TypeVar("T")


class Inbox(SimpleQueue[T | LinkEvent]):
    """A queue whose `deliver` waits for room; `put` never does."""

    def __init__(self, bytes_max: int = BYTES_MAX, wait_s: float = WAIT_S) -> None:
        self._bytes_max = bytes_max
        self._wait_s = wait_s
        self._room = threading.Condition()
        self._bytes = 0
        self._open = False

    def deliver(self, event: LinkEvent) -> None:
        """From the network thread: wait for room, or `wait_s`."""
        if isinstance(event, Received | Unsealed):
            with self._room:
                self._room.wait_for(
                    lambda: self._open or self._bytes < self._bytes_max, self._wait_s
                )
                self._bytes += _bytes_of(event)
        self.put(event)

    def get(self, block: bool = True, timeout: float | None = None) -> T | LinkEvent:
        """The next item.

        Raises:
            queue.Empty: there is none in time.
        """
        item = super().get(block, timeout)
        if isinstance(item, Received | Unsealed):
            with self._room:
                self._bytes -= _bytes_of(item)
                self._room.notify()
        return item

    def wait_no_more(self) -> None:
        """The end is near: whatever comes now finds room."""
        with self._room:
            self._open = True
            self._room.notify_all()


def _bytes_of(event: Received | Unsealed) -> int:
    return ITEM_BYTES + (len(event.payload) if isinstance(event, Received) else 0)
