"""A flood waits outside; everything else comes in at once."""

from __future__ import annotations

import threading
from queue import Empty

import pytest

from coordinator.inbox import ITEM_BYTES, Inbox
from fedtide.transport import Disconnected, LinkEvent, Received

CHUNK = Received("t", bytes(1000))
DEADLINE_S = 20.0


def flooding(inbox: Inbox[str], count: int) -> threading.Thread:
    def run() -> None:
        for _ in range(count):
            inbox.deliver(CHUNK)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_the_network_waits_for_room_and_nothing_is_lost() -> None:
    inbox: Inbox[str] = Inbox(bytes_max=3 * (1000 + ITEM_BYTES), wait_s=DEADLINE_S)
    thread = flooding(inbox, 50)
    largest = 0
    heard: list[str | LinkEvent] = []
    for _ in range(50):
        heard.append(inbox.get(timeout=DEADLINE_S))
        largest = max(largest, inbox.qsize())
    thread.join(DEADLINE_S)
    assert heard == [CHUNK] * 50
    assert largest <= 3
    with pytest.raises(Empty):
        inbox.get(timeout=0)


def test_what_is_no_message_never_waits() -> None:
    inbox: Inbox[str] = Inbox(bytes_max=1, wait_s=DEADLINE_S)
    inbox.deliver(CHUNK)
    inbox.deliver(Disconnected("cut"))
    inbox.put("stop")
    assert [inbox.get(timeout=0) for _ in range(3)] == [CHUNK, Disconnected("cut"), "stop"]


def test_at_the_end_nobody_waits() -> None:
    inbox: Inbox[str] = Inbox(bytes_max=1, wait_s=3600)
    thread = flooding(inbox, 10)
    inbox.wait_no_more()
    thread.join(DEADLINE_S)
    assert inbox.qsize() == 10


def test_a_wait_ends_so_that_the_link_stays_alive() -> None:
    inbox: Inbox[str] = Inbox(bytes_max=1, wait_s=0.01)
    flooding(inbox, 5).join(DEADLINE_S)
    assert inbox.qsize() == 5
