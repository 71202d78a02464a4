"""A device that learns faster than it sends: what it has begun to send gets through."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from coordinator.store import Store
from fedtide.messages import Chunk, Envelope, decode
from fedtide.transport import Delivered
from tests.federation import Device, Federation

SECOND_MS = 1_000


class SlowLine:
    """What a device sends in chunks takes a second a chunk; everything else goes at once."""

    def __init__(self, device: Device) -> None:
        self._link = device.link
        self._publish = device.link.publish
        self._chunks: deque[tuple[str, bytes, int]] = deque()
        device.link.publish = self.publish  # type: ignore[method-assign]

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        envelope = decode(payload) if payload else None
        if not (isinstance(envelope, Envelope) and isinstance(envelope.body, Chunk)):
            return self._publish(topic, payload, retain=retain)
        self._link._token += 1
        self._chunks.append((topic, payload, self._link._token))
        return self._link._token

    def second(self) -> None:
        """The next chunk has arrived."""
        if self._chunks:
            topic, payload, token = self._chunks.popleft()
            self._link._broker.route(topic, payload, retain=False)
            self._link.deliver(Delivered(token))


def slow_federation(folder: Path) -> Federation:
    """An update of `slow` takes 13 seconds and its rounds 10, so it has ever more to send."""
    federation = Federation(
        folder, devices_min=3, quorum=2, count=9, late="discount", collect_ms=10_000
    )
    federation.add("a", "b", "slow")
    return federation


def seconds(federation: Federation, line: SlowLine, count: int) -> None:
    """Time passes, second by second."""
    for _ in range(count):
        federation.now_ms += SECOND_MS
        line.second()
        federation.settle()
        federation.service.time_reached(federation.now_ms)
        for device in federation.devices.values():
            device.session.time_reached(federation.now_ms)
        federation.settle()


def accepted(store: Store, device_id: str) -> list[int]:
    """Rounds of the updates of a device that count."""
    rows = store._db.execute(
        "SELECT round_id FROM updates WHERE device_id = ? AND verdict = 'accepted'"
        " AND digest IS NOT NULL ORDER BY rowid",
        (device_id,),
    )
    return [round_id for (round_id,) in rows]


def test_a_device_that_learns_faster_than_it_sends_is_heard(tmp_path: Path) -> None:
    """Each of its offers dropped what had arrived of the update before: none was ever whole."""
    federation = slow_federation(tmp_path)
    slow = federation.devices["slow"]
    line = SlowLine(slow)
    seconds(federation, line, 70)
    rounds = accepted(federation.store, "slow")
    assert rounds[0] == 1, "nothing newer takes the place of what is being sent"
    assert len(rounds) >= 70 // 13 - 1
    seconds(federation, line, 60)
    assert federation.finished()
    assert slow.session._state.durable.outbox == ()


@pytest.mark.parametrize(("end", "life_s"), [("device", 9), ("coordinator", 12)])
def test_a_restart_changes_nothing_of_it(tmp_path: Path, end: str, life_s: int) -> None:
    """Switched off before an update can be sent, while a newer one waits."""
    federation = slow_federation(tmp_path)
    slow = federation.devices["slow"]
    line = SlowLine(slow)
    for _ in range(8):
        seconds(federation, line, life_s)
        if end == "device":
            slow.kill()
            federation.settle()
            slow.boot()
            line = SlowLine(slow)
        else:
            federation.kill_coordinator()
            federation.settle()
            federation.boot_coordinator()
        federation.settle()
    rounds = accepted(federation.store, "slow")
    assert rounds[0] == 1
    assert len(rounds) >= 2
