"""What is heard over a sealed link, and what becomes of everything else.

The broker here is in memory, and broken into: `Thief` says whatever it likes wherever it likes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from coordinator.marks import Marks
from coordinator.store import Store
from coordinator.trust import MemberTrust
from edge_client.trust import DeviceTrust
from fedtide.files import write_atomically
from fedtide.identity import Identity
from fedtide.keys import new_key, public_bytes
from fedtide.members import Members
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.messages import Problem, Receipt, Refusal, Renamed, Want, encode
from fedtide.seal import OVERHEAD_BYTES, UNORDERED, open_sealed, seal
from fedtide.sealed_transport import SealedTransport
from fedtide.sequence import Sequence
from fedtide.topics import Topics
from fedtide.transport import Connected, LinkEvent, Received, Unsealed, Will
from fedtide.trust import Onlooker, Trust
from tests.identities import Authority

TOPICS = Topics("tides")
UP, DOWN = TOPICS.up("alpha"), TOPICS.down("alpha")
RECEIPT = encode(Receipt("u1", "accepted"), "1")


class Party(NamedTuple):
    """One end of a sealed link, and what it has heard."""

    identity: Identity
    link: SealedTransport[MemoryTransport]
    heard: list[LinkEvent]

    def received(self) -> list[tuple[str, bytes]]:
        return [(e.topic, e.payload) for e in self.heard if isinstance(e, Received)]

    def reasons(self) -> list[str]:
        return [e.reason.split(":")[0] for e in self.heard if isinstance(e, Unsealed)]


class World:
    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.authority = authority
        self.broker = MemoryBroker()
        self.wire: list[tuple[str, bytes]] = []
        route = self.broker.route

        def recorded(topic: str, payload: bytes, *, retain: bool) -> None:
            self.wire.append((topic, payload))
            route(topic, payload, retain=retain)

        self.broker.route = recorded  # type: ignore[method-assign]
        self.keys: dict[str, str] = {}
        self.members = folder / "members.json"
        self.write_members()
        self.store = Store(folder / "state")

    def write_members(self) -> None:
        devices = {name: {"key": key} for name, key in self.keys.items()}
        write_atomically(self.members, json.dumps({"devices": devices}).encode())

    def identity(self, name: str) -> Identity:
        folder = self.folder / name
        if not folder.exists():
            identity = self.authority.identity(folder, name)
            if name != "coordinator":
                self.keys[name] = public_bytes(identity.key).hex()
                self.write_members()
            return identity
        from fedtide.identity import load_identity

        return load_identity(folder)

    def device(self, name: str = "alpha", will: Will | None = None) -> Party:
        identity = self.identity(name)
        party = self._party(identity, DeviceTrust(TOPICS, identity), will)
        party.link.subscribe([TOPICS.down(name), TOPICS.beacon, f"{TOPICS.root}/blob/#"])
        return party

    def coordinator(self) -> Party:
        identity, members = self.identity("coordinator"), Members(self.members)
        trust = MemberTrust(TOPICS, members, self.store.marks, identity.key_set())
        party = self._party(identity, trust, None)
        party.link.subscribe([TOPICS.up("+"), TOPICS.presence("+")])
        return party

    def _party(self, identity: Identity, trust: Trust, will: Will | None) -> Party:
        heard: list[LinkEvent] = []
        numbers = Sequence(identity.folder)
        link = SealedTransport(
            lambda deliver, will: MemoryTransport(self.broker, deliver, will),
            heard.append,
            will,
            TOPICS,
            identity.key,
            numbers.take,
            trust,
        )
        link.start()
        return Party(identity, link, heard)

    def inject(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """What a broken-in broker says."""
        self.broker.route(topic, payload, retain=retain)

    def last(self, topic: str) -> bytes:
        return [payload for name, payload in self.wire if name == topic][-1]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def world(tmp_path: Path, authority: Authority) -> Iterator[World]:
    world = World(tmp_path, authority)
    yield world
    world.store.close()


def test_both_sides_hear_each_other(world: World) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    alpha.link.publish(UP, b"offer")
    coordinator.link.publish(DOWN, RECEIPT)
    coordinator.link.publish(TOPICS.beacon, b"here", retain=True)
    assert coordinator.received() == [(UP, b"offer")]
    assert alpha.received() == [(DOWN, RECEIPT), (TOPICS.beacon, b"here")]
    assert alpha.reasons() == coordinator.reasons() == []
    assert all(open_sealed(payload) is not None for _, payload in world.wire)


def test_there_is_so_much_less_room_in_a_packet(world: World) -> None:
    limit = world.broker.packet_bytes_max
    assert [e for e in world.device().heard if isinstance(e, Connected)] == [
        Connected("memory", limit - OVERHEAD_BYTES)
    ]


def test_the_will_is_sealed(world: World) -> None:
    coordinator = world.coordinator()
    world.device(will=Will(TOPICS.presence("alpha"), b"gone")).link.inner.cut()
    assert coordinator.received() == [(TOPICS.presence("alpha"), b"gone")]


def test_an_empty_retained_payload_stays_empty(world: World) -> None:
    coordinator = world.coordinator()
    topic = TOPICS.chunk("ab" * 32, 0)
    coordinator.link.publish(topic, b"chunk", retain=True)
    coordinator.link.publish(topic, b"", retain=True)
    assert world.last(topic) == b""
    assert topic not in world.broker.retained
    world.device()
    world.inject(UP, b"")
    assert coordinator.received() == []
    assert coordinator.reasons() == []


@pytest.mark.parametrize(
    "forged",
    [
        b"plain",
        encode(Receipt("u1", "accepted"), "1"),
        seal(DOWN, RECEIPT, new_key(), 2**60),
        b"\xc1fs\x01" + bytes(80),
        b"\xc1fs\x01",
    ],
    ids=["plain", "unsealed", "of nobody's", "zeros", "short"],
)
def test_a_device_hears_nothing_that_the_coordinator_did_not_say(
    world: World, forged: bytes
) -> None:
    alpha = world.device()
    for topic in (DOWN, TOPICS.beacon, TOPICS.chunk("ab" * 32, 0)):
        world.inject(topic, forged)
    assert alpha.received() == []
    assert len(alpha.reasons()) == 3
    assert set(alpha.reasons()) <= {"seal missing", "seal of an unknown key"}


def test_a_device_does_not_believe_another_device(world: World) -> None:
    alpha, beta = world.device(), world.device("beta")
    world.inject(DOWN, seal(DOWN, RECEIPT, beta.identity.key, 2**60))
    assert alpha.reasons() == ["seal of an unknown key"]


def test_what_was_altered_on_its_way_is_not_heard(world: World) -> None:
    alpha, coordinator = world.device("beta"), world.coordinator()
    topic = TOPICS.chunk("ab" * 32, 0)
    coordinator.link.publish(topic, b"weights", retain=True)
    raw = bytearray(world.last(topic))
    raw[-1] ^= 1
    world.inject(topic, bytes(raw))
    assert alpha.received() == [(topic, b"weights")]
    assert alpha.reasons() == ["seal broken"]


def test_what_was_said_to_another_device_is_not_heard(world: World) -> None:
    alpha, beta, coordinator = world.device(), world.device("beta"), world.coordinator()
    coordinator.link.publish(DOWN, RECEIPT)
    world.inject(TOPICS.down("beta"), world.last(DOWN))
    assert alpha.received() == [(DOWN, RECEIPT)]
    assert beta.received() == []
    assert beta.reasons() == ["seal broken"]


def test_a_device_cannot_speak_as_another(world: World) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    world.device("beta")
    alpha.link.publish(TOPICS.up("beta"), b"offer")
    alpha.link.publish(TOPICS.presence("beta"), b"gone")
    assert coordinator.received() == []
    assert coordinator.reasons() == ["seal of another key"] * 2


def test_a_replay_is_heard_once_by_both_sides_and_after_a_restart(world: World) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    alpha.link.publish(UP, encode(Want("ab" * 32, ()), "w1"))
    coordinator.link.publish(DOWN, RECEIPT)
    for _ in range(2):
        world.inject(UP, world.last(UP))
        world.inject(DOWN, world.last(DOWN))
    assert len(coordinator.received()) == len(alpha.received()) == 1
    assert coordinator.reasons() == alpha.reasons() == ["seal replayed"] * 2
    replay = next(event for event in coordinator.heard if isinstance(event, Unsealed))
    assert replay.regarding == "w1"
    with world.store.transaction():  # what follows from the message takes the mark along
        world.store.set_fact("anything", "")
    for party in (alpha, coordinator):
        party.link.stop()
    world.store.close()
    world.store = Store(world.folder / "state")
    alpha, coordinator = world.device(), world.coordinator()
    world.inject(UP, world.last(UP))
    world.inject(DOWN, world.last(DOWN))
    assert coordinator.received() == alpha.received() == []
    assert coordinator.reasons() == alpha.reasons() == ["seal replayed"]
    alpha.link.publish(UP, b"next")
    coordinator.link.publish(DOWN, RECEIPT)
    assert coordinator.received() == [(UP, b"next")]
    assert alpha.received() == [(DOWN, RECEIPT)]


def test_what_was_overtaken_is_not_heard(world: World) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    coordinator.link.unsubscribe([TOPICS.up("+")])
    alpha.link.publish(UP, b"first")
    first = world.last(UP)
    coordinator.link.subscribe([TOPICS.up("+")])
    alpha.link.publish(UP, b"second")
    world.inject(UP, first)
    assert coordinator.received() == [(UP, b"second")]
    assert coordinator.reasons() == ["seal replayed"]


def test_what_has_no_number_is_a_question_each_time(world: World) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    for _ in range(2):
        world.inject(UP, seal(UP, RECEIPT, alpha.identity.key, UNORDERED))
    alpha.link.publish(UP, b"counted")
    assert coordinator.received() == [(UP, b"counted")]
    assert coordinator.reasons() == ["seal without a number"] * 2


def test_the_mark_is_on_disk_before_a_receipt_is_heard_and_not_for_a_problem(world: World) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    marks = alpha.identity.folder / "marks.1"
    coordinator.link.publish(DOWN, encode(Problem("1", "x"), "2"))
    assert not marks.exists()
    coordinator.link.publish(DOWN, RECEIPT)
    assert marks.exists()


def test_what_cannot_be_remembered_is_not_heard(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    coordinator.link.publish(TOPICS.status, b"reserves numbers")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        coordinator.link.publish(DOWN, RECEIPT)
    assert alpha.received() == []
    assert alpha.reasons() == ["seal not kept"]
    coordinator.link.publish(DOWN, RECEIPT)
    assert alpha.received() == [(DOWN, RECEIPT)]


def test_without_a_number_nothing_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alpha, coordinator = world.device(), world.coordinator()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert alpha.link.publish(UP, b"offer") is None
    assert "nothing can be sealed" in caplog.text
    assert coordinator.received() == []
    assert alpha.link.publish(UP, b"offer") is not None
    assert coordinator.received() == [(UP, b"offer")]


def test_who_is_revoked_is_not_heard_from_the_next_message_on_and_told_nothing(
    world: World,
) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    alpha.link.publish(UP, b"one")
    del world.keys["alpha"]
    world.write_members()
    alpha.link.publish(UP, b"two")
    assert coordinator.received() == [(UP, b"one")]
    assert coordinator.reasons() == ["seal of no member"]
    assert coordinator.link.publish(DOWN, RECEIPT) is None
    assert alpha.received() == []


def test_a_device_that_joined_anew_begins_anew(world: World) -> None:
    """Its clock, or its file of numbers, may have been wrong: the new key has no mark yet."""
    alpha, coordinator = world.device(), world.coordinator()
    world.inject(UP, seal(UP, b"from 2100", alpha.identity.key, 4_102_444_800_000))
    alpha.link.publish(UP, b"now")
    assert coordinator.reasons() == ["seal replayed"]
    alpha.link.stop()
    (world.folder / "alpha").rename(world.folder / "old")
    world.device().link.publish(UP, b"joined")
    assert coordinator.received() == [(UP, b"from 2100"), (UP, b"joined")]


def test_a_new_name_that_lies_at_the_broker_is_no_replay(world: World) -> None:
    """It comes with each connection until it is taken."""
    topic, authority = TOPICS.enrolled("alpha"), world.authority.key

    def said(number: int, body: Renamed | Refusal) -> bytes:
        return seal(topic, encode(body, str(number)), authority, number)

    world.inject(topic, said(5, Renamed("kitchen")), retain=True)
    for _ in range(2):  # kept over a restart, too
        alpha = world.device()
        for _ in range(2):
            alpha.link.subscribe([topic])
        assert len(alpha.received()) == 2
        assert alpha.reasons() == []
        alpha.link.stop()
    alpha = world.device()
    world.inject(topic, b"", retain=True)
    alpha.link.subscribe([topic])
    for message in (
        said(6, Refusal("x", "no")),
        said(6, Refusal("x", "no")),
        said(4, Renamed("x")),
    ):
        world.inject(topic, message)
    assert alpha.reasons() == ["seal replayed"] * 2


# ---- keys of the coordinator ----


def rolled_over(world: World, version: int = 2) -> bytes:
    """The coordinator has a new key; the old one's owner may be anybody."""
    authority = world.authority
    old, authority.coordinator = authority.coordinator, new_key()
    identity = world.identity("coordinator")
    from fedtide.identity import write_identity

    key = authority.coordinator
    raw = authority.key_set(version)
    write_identity(
        identity.folder,
        key,
        authority.certify("coordinator", key.public_key()),
        authority.pem,
        raw,
    )
    return seal(DOWN, encode(Receipt("u2", "accepted"), "1"), old, 2**61)


def test_a_device_learns_the_new_key_and_refuses_the_old_one_for_ever(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, Authority())
    first = world.coordinator()
    alpha = world.device()
    first.link.publish(DOWN, RECEIPT)
    old_set = world.broker.retained[TOPICS.keys]
    alpha.link.stop()  # offline while the key is changed
    first.link.stop()
    forged = rolled_over(world)
    second = world.coordinator()
    alpha = world.device()
    second.link.publish(DOWN, RECEIPT)
    assert alpha.received() == [(DOWN, RECEIPT)]
    world.inject(DOWN, forged)
    world.inject(TOPICS.keys, old_set, retain=True)
    world.inject(DOWN, forged)
    assert alpha.reasons() == ["seal of an unknown key", "seal stale", "seal of an unknown key"]
    alpha.link.stop()
    alpha = world.device()  # the broker still says that the old set is the newest
    world.inject(DOWN, forged)
    assert alpha.reasons() == ["seal stale", "seal of an unknown key"]
    assert alpha.received() == []
    marks = [path.read_bytes() for path in alpha.identity.folder.glob("marks.*")]
    newest = max(marks, key=lambda raw: raw[32:40])
    assert len(msgspec.json.decode(newest[40:], type=dict[str, int])) == 1
    world.store.close()


def test_a_key_set_of_nobody_is_not_taken(world: World) -> None:
    alpha = world.device()
    stranger = Authority()
    world.inject(TOPICS.keys, stranger.key_set(9), retain=True)
    world.inject(TOPICS.keys, b"plain", retain=True)
    mine = seal(TOPICS.keys, b"x", alpha.identity.key, 9)
    world.inject(TOPICS.keys, mine, retain=True)
    assert alpha.reasons() == ["seal of no authority", "seal missing", "seal of no authority"]
    assert world.coordinator().link.publish(DOWN, RECEIPT) is not None
    assert alpha.received() == [(DOWN, RECEIPT)]


def test_a_damaged_key_set_is_fetched_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    identity, coordinator = world.identity("alpha"), world.coordinator()
    identity.save_key_set(b"rot")
    alpha = world.device()
    assert "stored key set is not taken" in caplog.text
    coordinator.link.publish(DOWN, RECEIPT)
    assert alpha.received() == [(DOWN, RECEIPT)]
    assert identity.key_set() == world.authority.key_set()


def test_a_key_set_that_cannot_be_kept_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, Authority())
    alpha = world.device()
    rolled_over(world)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        world.inject(TOPICS.keys, world.authority.key_set(2))
    assert alpha.reasons() == ["seal not kept"]
    world.coordinator().link.publish(DOWN, RECEIPT)
    assert alpha.received() == [(DOWN, RECEIPT)]
    world.store.close()


# ---- who only looks ----


@pytest.mark.parametrize("knows_members", [True, False])
def test_an_onlooker_changes_nothing_and_believes_what_it_can_check(
    world: World, knows_members: bool
) -> None:
    alpha, coordinator = world.device(), world.coordinator()
    beta = world.identity("beta")
    before = {path: path.read_bytes() for path in beta.folder.iterdir() if path.is_file()}
    members = Members(world.members) if knows_members else None
    heard: list[LinkEvent] = []
    link = SealedTransport(
        lambda deliver, will: MemoryTransport(world.broker, deliver, will),
        heard.append,
        None,
        TOPICS,
        beta.key,
        lambda: 0,
        Onlooker(TOPICS, beta, members),
    )
    link.start()
    link.subscribe([TOPICS.beacon, TOPICS.presence("+")])
    alpha.link.publish(TOPICS.presence("alpha"), b"idle", retain=True)
    coordinator.link.publish(TOPICS.beacon, b"here", retain=True)
    coordinator.link.publish(TOPICS.beacon, b"here", retain=True)
    stranger, presence = new_key(), TOPICS.presence("alpha")
    world.inject(TOPICS.beacon, seal(TOPICS.beacon, b"forged", stranger, 1))
    world.inject(presence, seal(presence, b"forged", stranger, 1))
    reasons = [event.reason.split(":")[0] for event in heard if isinstance(event, Unsealed)]
    received = [event.payload for event in heard if isinstance(event, Received)]
    if knows_members:
        assert received == [b"idle", b"here", b"here"]
        assert reasons == ["seal of an unknown key", "seal of another key"]
    else:
        assert received == [b"idle", b"here", b"here", b"forged"]
        assert reasons == ["seal of an unknown key"]
    after = {path: path.read_bytes() for path in beta.folder.iterdir() if path.is_file()}
    assert after == before


# ---- the coordinator's marks ----


def test_marks_are_written_with_a_transaction_and_only_what_is_new(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.marks.advance("aa", 5) is None
    assert store.marks.advance("aa", 5) == 5
    with pytest.raises(RuntimeError, match="cut"), store.transaction():
        raise RuntimeError("cut")
    assert store.marks.unwritten() == {"aa": 5}
    with store.transaction():
        pass
    assert store.marks.unwritten() == {}
    assert store.marks.advance("bb", 7) is None
    store.close()
    store = Store(tmp_path)
    assert store.marks.advance("aa", 4) == 5
    assert store.marks.advance("bb", 7) == 7
    assert store.marks.advance("bb", 2**63 - 1) is None
    store.close()
    assert Store(tmp_path).marks.advance("bb", 8) == 2**63 - 1


def test_a_mark_that_advances_during_the_commit_is_written_with_the_next() -> None:
    marks = Marks({})
    marks.advance("aa", 1)
    written = marks.unwritten()
    marks.advance("aa", 2)
    marks.written(written)
    assert marks.unwritten() == {"aa": 2}
