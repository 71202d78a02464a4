"""Junk on every live topic of a real broker while rounds of real processes go on."""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import pytest

from demo.brokers import COORDINATOR, Broker, find_broker
from demo.local import LocalFederation, wait_for
from fedtide.limits import MESSAGE_BYTES_MAX
from fedtide.messages import Envelope, Malformed, Offer, decode, encode
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Connected, LinkEvent, Received
from tests.bundles import build
from tests.faults.checker import check_logs, check_store
from tests.faults.federation import DEVICE_PYTHON, make_data
from tests.golden.test_golden import MESSAGES
from tests.hostile.mutation import Mutator

WAIT_S = 120.0
PACE = 500
"""Junk messages between two looks at whether the coordinator keeps up: below what brokers queue."""
PACKET_BYTES_MAX = 132_096
"""What our own link sends at most."""
MEMORY_GROWTH_MAX = 40_000_000
LOG_BYTES_MAX = 400_000
DEVICES = ("alpha", "beta")
NONSENSE = [
    encode(message, "junk")
    for name, message in MESSAGES.items()
    # A Hello makes a device known, and Presence may say that one is gone: no junk.
    if name not in ("hello", "presence")
]


class Flood:
    """Somebody who may publish anything, for anybody."""

    def __init__(self, broker: Broker, federation: str, seed: int) -> None:
        self.topics = Topics(federation)
        self.sent: Counter[str] = Counter()
        self.malformed = 0
        """Of those that the coordinator hears."""
        self.recorded: list[tuple[str, bytes]] = []
        self._random = random.Random(seed)
        self._mutator = Mutator(self._random, "msgpack")
        self._inbox: SimpleQueue[LinkEvent] = SimpleQueue()
        self.link = MqttTransport(broker.access("flood"), "flood", self._inbox.put)
        self.link.start()
        self._until(lambda event: isinstance(event, Connected))
        self.link.subscribe([self.topics.up("+"), self.topics.down("pacer")])

    def record(self, count: int) -> None:
        """Keep what devices say, to say it again."""

        def heard(event: LinkEvent) -> bool:
            if isinstance(event, Received):
                self.recorded.append((event.topic, event.payload))
            kinds = {type(decode(raw)) for _, raw in self.recorded}
            offers = [
                raw
                for _, raw in self.recorded
                if isinstance(said := decode(raw), Envelope) and isinstance(said.body, Offer)
            ]
            return len(self.recorded) >= count and len(offers) >= 2 and kinds == {Envelope}

        self._until(heard)
        self.link.unsubscribe([self.topics.up("+")])

    def send(self, count: int) -> None:
        """So much junk, as fast as the coordinator hears it."""
        for number, (kind, topic, payload, retain) in enumerate(self._junk(count)):
            assert self.link.publish(topic, payload, retain=retain) is not None, kind
            self.sent[kind] += 1
            up = topic.startswith(self.topics.up(""))
            presence = topic.startswith(self.topics.presence(""))
            if up or (presence and payload):
                self.malformed += isinstance(decode(payload), Malformed)
            if number % PACE == PACE - 1:
                self.keep_pace()
        self.keep_pace()

    def keep_pace(self) -> None:
        """Until the coordinator has heard everything that was said before."""
        # Nobody who says Hello: he would be invited. A verdict comes to whoever asks for one.
        token = f"pace-{self.sent.total()}"
        offer = MESSAGES["offer"]
        assert isinstance(offer, Offer)
        asked = Offer(msgspec.structs.replace(offer.update, update_id=token))
        self.link.publish(self.topics.up("pacer"), encode(asked, token))

        def answered(event: LinkEvent) -> bool:
            said = decode(event.payload) if isinstance(event, Received) else None
            return isinstance(said, Envelope) and getattr(said.body, "update_id", "") == token

        self._until(answered)

    def _junk(self, count: int) -> Iterator[tuple[str, str, bytes, bool]]:
        random, topics = self._random, self.topics
        listened = [topics.up(name) for name in (*DEVICES, "mallory", "ghost")]
        told = [topics.down(name) for name in DEVICES]
        told += [topics.beacon, topics.status, topics.chunk("0" * 64, 0)]
        for number in range(count):
            if number % 500 == 0:
                size = random.randint(MESSAGE_BYTES_MAX + 1, PACKET_BYTES_MAX - 200)
                yield "oversized", random.choice(listened), bytes(size), False
            elif number % 10 < 4:
                payload = self._malformed()
                places = [*listened, *map(topics.presence, (*DEVICES, "ghost"))]
                yield "malformed", random.choice(places), payload, False
            elif number % 10 < 6:
                yield "nonsense", random.choice(listened), random.choice(NONSENSE), False
            elif number % 10 < 8:
                yield "replayed", *random.choice(self.recorded), False
            elif number % 10 == 8:
                payload = random.choice(self.recorded)[1]
                said = decode(payload)
                assert isinstance(said, Envelope)
                if type(said.body).__name__ == "Hello":
                    payload = NONSENSE[0]
                yield "by another", topics.up("mallory"), payload, False
            else:
                name = f"r{random.randrange(50)}"
                places = [topics.up(name), topics.presence(name), topics.chunk("f" * 64, number)]
                place = random.choice([*places, *told])
                retain = place in places
                yield "retained" if retain else "to devices", place, self._malformed(), retain

    def _malformed(self) -> bytes:
        while True:
            payload = self._mutator.draw(NONSENSE)[:4_000]
            if payload and isinstance(decode(payload), Malformed):
                return payload

    def _until(self, condition: Callable[[LinkEvent], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            try:
                event = self._inbox.get(timeout=1)
            except Empty:
                continue
            if condition(event):
                return
        raise AssertionError("it did not happen in time")


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_rounds_go_on_in_a_flood_of_junk(count: int, tmp_path: Path) -> None:
    broker = Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, *DEVICES, "flood"))
    with (tmp_path / "broker" / "acl").open("a") as file:
        file.write("\nuser flood\ntopic readwrite fedtide/#\n")
    with broker, LocalFederation(tmp_path / "run", broker) as federation:
        size = dict.fromkeys(("cohort_size", "devices_min", "quorum"), 2)
        coordinator = federation.add_coordinator(
            build("tiny_mlp"),
            rounds={"count": 1_000_000, **size},
            plan={"epochs": 1, "batch_size": 10},
            history={"rounds_kept": 1_000_000},  # what the checker looks at stays
        )
        for seed, name in enumerate(DEVICES):
            data = make_data(tmp_path / f"{name}.npz", seed)
            federation.add_device(name, data, DEVICE_PYTHON)
        flood = Flood(broker, federation.name, seed=count)
        federation.start()
        flood.record(60)
        process_id = coordinator.process_id
        assert process_id is not None
        flood.send(500)
        before, rounds_before = resident_bytes(process_id), rounds(federation)
        logs_before = log_bytes(federation)
        flood.send(count - 500)
        grown = resident_bytes(process_id) - before
        logged = log_bytes(federation) - logs_before
        wait_for(lambda: rounds(federation) > rounds_before + 1, "rounds in the flood", WAIT_S)
        for child in (coordinator, *federation.devices.values()):
            child.check()
            child.ask_to_stop()
        for child in (coordinator, *federation.devices.values()):
            assert child.wait(WAIT_S) == 0
        flood.link.stop()
        print(
            f"{flood.sent}, {flood.malformed} malformed, {rounds(federation)} rounds, "
            f"{grown:,} bytes of memory, {logged:,} of log",
            file=sys.stderr,
        )
    assert flood.sent.total() == count
    assert counted(federation)["refused: malformed"] == flood.malformed
    assert check_store(federation.state_dir) == []
    assert check_logs(federation.folder.glob("*.log")) == []
    assert grown < MEMORY_GROWTH_MAX
    assert logged < LOG_BYTES_MAX


def resident_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def log_bytes(federation: LocalFederation) -> int:
    return sum(path.stat().st_size for path in federation.folder.glob("*.log"))


def rounds(federation: LocalFederation) -> int:
    """Models made of updates."""
    return int(rows(federation, "SELECT COUNT(*) FROM models WHERE version > 0")[0][0])


def counted(federation: LocalFederation) -> dict[str, int]:
    return {str(name): int(value) for name, value in rows(federation, "SELECT * FROM counts")}


def rows(federation: LocalFederation, sql: str) -> list[tuple[Any, ...]]:
    path = federation.state_dir / "coordinator.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(sql).fetchall()
