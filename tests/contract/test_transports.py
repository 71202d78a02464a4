"""One suite over every transport: what the program above the seam may rely on."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from coordinator.marks import Marks
from coordinator.trust import MemberTrust
from demo.brokers import Broker, Kind, find_broker
from edge_client.trust import DeviceTrust
from fedtide.keys import public_bytes
from fedtide.limits import MESSAGE_BYTES_MAX
from fedtide.members import Members
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.mqtt import MqttTransport
from fedtide.sealed_transport import SealedTransport
from fedtide.sequence import Sequence
from fedtide.topics import Topics
from fedtide.transport import (
    Connected,
    Deliver,
    Delivered,
    Disconnected,
    LinkEvent,
    Received,
    Transport,
    Will,
)
from fedtide.trust import Trust
from tests.identities import Authority

E = TypeVar("E", bound=LinkEvent)

TOPICS = Topics("tides")
DEADLINE_S = 20.0
SETTLE = b"settle"
"""What `settle` publishes, more than once where a broker is slow: the tests never see it."""
USERS = ("coordinator", "alpha", "beta")


class Link:
    """A transport and the events it delivered."""

    def __init__(self, transport: Transport, events: queue.Queue[LinkEvent]) -> None:
        self.transport = transport
        self._events = events

    def wait(self, kind: type[E], matching: Callable[[E], bool] = lambda _event: True) -> E:
        """The next event of this kind; others before it are passed over."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            event = self._events.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(event, kind) and not is_settling(event) and matching(event):
                return event

    def received(self) -> list[Received]:
        """Messages that wait, without waiting."""
        waiting = []
        while not self._events.empty():
            event = self._events.get()
            if isinstance(event, Received) and not is_settling(event):
                waiting.append(event)
        return waiting


class World:
    """A broker and a way to connect to it and to lose a connection."""

    def __init__(self) -> None:
        self._links: list[Link] = []

    def connect(self, user: str, will: Will | None = None) -> Link:
        """A link that is up."""
        events: queue.Queue[LinkEvent] = queue.Queue()
        link = Link(self.transport(user, events.put, will), events)
        self._links.append(link)
        link.transport.start()
        link.wait(Connected)
        return link

    def close(self) -> None:
        """Stop everything."""
        for link in self._links:
            link.transport.stop()

    def cut(self, link: Link) -> None:
        """The link breaks: no farewell."""
        self.cut_transport(link.transport)

    def cut_transport(self, transport: Transport) -> None:
        raise NotImplementedError

    def transport(self, user: str, deliver: Deliver, will: Will | None) -> Transport:
        """A link that is not started."""
        raise NotImplementedError


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self._broker = MemoryBroker()

    def cut_transport(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.cut()

    def transport(self, user: str, deliver: Deliver, will: Will | None) -> Transport:
        return MemoryTransport(self._broker, deliver, will)


class MqttWorld(World):
    def __init__(self, kind: Kind, folder: Path) -> None:
        super().__init__()
        self.broker = Broker(kind, folder, USERS)
        self.broker.start()

    def close(self) -> None:
        super().close()
        self.broker.stop()

    def cut_transport(self, transport: Transport) -> None:
        client = transport._client  # type: ignore[attr-defined]
        client.socket().shutdown(2)

    def transport(self, user: str, deliver: Deliver, will: Will | None) -> Transport:
        return MqttTransport(self.broker.access(user), user, deliver, will)


class SealedWorld(World):
    """The same with every message sealed. What the coordinator says on `up` to try whether it
    hears is a device's of whom it has the key."""

    def __init__(self, world: World, folder: Path) -> None:
        super().__init__()
        self._world = world
        authority = Authority("tides")
        self._identities = {user: authority.identity(folder / user, user) for user in USERS}
        keys = {user: public_bytes(self._identities[user].key) for user in USERS}
        names = {"x": "coordinator", "alpha": "alpha", "beta": "beta"}
        devices = {name: {"key": keys[user].hex()} for name, user in names.items()}
        self._members = folder / "members.json"
        self._members.write_text(json.dumps({"devices": devices}))

    def close(self) -> None:
        super().close()
        self._world.close()

    def cut_transport(self, transport: Transport) -> None:
        assert isinstance(transport, SealedTransport)
        self._world.cut_transport(transport.inner)

    def transport(self, user: str, deliver: Deliver, will: Will | None) -> Transport:
        identity = self._identities[user]
        trust: Trust = DeviceTrust(TOPICS, identity)
        if user == "coordinator":
            members, key_set = Members(self._members), identity.key_set()
            trust = MemberTrust(TOPICS, members, Marks({}), key_set)
        return SealedTransport(
            partial(self._world.transport, user),
            deliver,
            will,
            TOPICS,
            identity.key,
            Sequence(identity.folder).take,
            trust,
        )


@pytest.fixture(params=["memory", "mosquitto", "amqtt", "sealed memory", "sealed mosquitto"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind = request.param.removeprefix("sealed ")
    if kind == "amqtt":
        pytest.importorskip("amqtt", reason="a device has no amqtt; the export environment does")
    made: World = MemoryWorld() if kind == "memory" else MqttWorld(find_broker(kind), tmp_path)
    if kind != request.param:
        made = SealedWorld(made, tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_message_reaches_those_who_subscribed_and_nobody_else(world: World) -> None:
    coordinator, alpha, beta = (world.connect(user) for user in USERS)
    alpha.transport.subscribe([TOPICS.down("alpha")])
    beta.transport.subscribe([TOPICS.down("beta")])
    settle(coordinator, alpha, TOPICS.down("alpha"))
    settle(coordinator, beta, TOPICS.down("beta"))
    coordinator.transport.publish(TOPICS.down("alpha"), b"for alpha")
    coordinator.transport.publish(TOPICS.down("beta"), b"for beta")
    assert alpha.wait(Received).payload == b"for alpha"
    assert beta.wait(Received).payload == b"for beta"
    assert alpha.received() == []


def test_every_publication_is_confirmed_by_its_token(world: World) -> None:
    coordinator = world.connect("coordinator")
    tokens = [coordinator.transport.publish(TOPICS.beacon, bytes([n])) for n in range(30)]
    assert None not in tokens
    confirmed = {coordinator.wait(Delivered).token for _ in tokens}
    assert confirmed == set(tokens)


def test_the_retained_chunk_is_there_for_who_subscribes_later(world: World) -> None:
    coordinator = world.connect("coordinator")
    content = bytes(range(256)) * 448
    topic = TOPICS.chunk("ab" * 32, 0)
    coordinator.transport.publish(topic, content, retain=True)
    coordinator.wait(Delivered)
    alpha = world.connect("alpha")
    alpha.transport.subscribe([topic])
    assert alpha.wait(Received) == Received(topic, content, retained=True)


def test_a_retained_message_is_cleared_by_an_empty_one(world: World) -> None:
    coordinator = world.connect("coordinator")
    for payload in (b"old", b""):
        coordinator.transport.publish(TOPICS.chunk("cd" * 32, 0), payload, retain=True)
        coordinator.wait(Delivered)
    coordinator.transport.publish(TOPICS.beacon, b"kept", retain=True)
    coordinator.wait(Delivered)
    alpha = world.connect("alpha")
    alpha.transport.subscribe([TOPICS.chunk("cd" * 32, 0), TOPICS.beacon])
    assert alpha.wait(Received) == Received(TOPICS.beacon, b"kept", retained=True)


def test_nothing_arrives_that_was_not_subscribed_to(world: World) -> None:
    coordinator, beta = world.connect("coordinator"), world.connect("beta")
    beta.transport.subscribe([TOPICS.beacon])
    coordinator.transport.publish(TOPICS.beacon, b"retained", retain=True)
    beta.wait(Received)
    alpha = world.connect("alpha")
    alpha.transport.subscribe([TOPICS.down("alpha")])
    settle(coordinator, alpha, TOPICS.down("alpha"))
    assert {event.topic for event in alpha.received()} <= {TOPICS.down("alpha")}


def test_the_largest_message_passes_and_a_larger_one_is_refused_here(world: World) -> None:
    coordinator, alpha = world.connect("coordinator"), world.connect("alpha")
    coordinator.transport.subscribe([TOPICS.up("+")])
    settle(coordinator, coordinator, TOPICS.up("x"))
    assert alpha.transport.publish(TOPICS.up("alpha"), b"x" * MESSAGE_BYTES_MAX) is not None
    got = coordinator.wait(Received)
    assert len(got.payload) == MESSAGE_BYTES_MAX
    assert alpha.transport.publish(TOPICS.up("alpha"), b"x" * 300_000) is None
    assert alpha.transport.publish(TOPICS.up("alpha"), b"still here") is not None
    assert coordinator.wait(Received).payload == b"still here"


def test_the_will_is_said_when_a_link_breaks(world: World) -> None:
    coordinator = world.connect("coordinator")
    coordinator.transport.subscribe([TOPICS.presence("+")])
    alpha = world.connect("alpha", Will(TOPICS.presence("alpha"), b"gone"))
    alpha.transport.publish(TOPICS.presence("alpha"), b"here", retain=True)
    assert coordinator.wait(Received).payload == b"here"
    world.cut(alpha)
    alpha.transport.stop()  # or it would be back before the will's delay is over
    assert coordinator.wait(Received).payload == b"gone"


def test_the_will_is_not_said_after_a_farewell(world: World) -> None:
    coordinator = world.connect("coordinator")
    coordinator.transport.subscribe([TOPICS.presence("+")])
    alpha = world.connect("alpha", Will(TOPICS.presence("alpha"), b"gone"))
    alpha.transport.stop()
    beta = world.connect("beta", Will(TOPICS.presence("beta"), b"gone"))
    world.cut(beta)
    beta.transport.stop()
    assert coordinator.wait(Received).topic == TOPICS.presence("beta")


def test_a_broken_link_is_reported_and_carries_nothing(world: World) -> None:
    alpha = world.connect("alpha")
    world.cut(alpha)
    assert alpha.wait(Disconnected).reason
    alpha.transport.stop()
    assert alpha.transport.publish(TOPICS.up("alpha"), b"lost") is None


def test_unsubscribing_ends_delivery(world: World) -> None:
    coordinator, alpha = world.connect("coordinator"), world.connect("alpha")
    alpha.transport.subscribe([TOPICS.beacon, TOPICS.down("alpha")])
    settle(coordinator, alpha, TOPICS.beacon)
    alpha.transport.unsubscribe([TOPICS.beacon])
    deadline = time.monotonic() + DEADLINE_S
    heard = True
    while heard:  # the broker takes it when it likes: what others publish may come before
        assert time.monotonic() < deadline, "it is still delivered"
        coordinator.transport.publish(TOPICS.beacon, b"unheard")
        coordinator.transport.publish(TOPICS.down("alpha"), b"heard")
        topics = []
        while TOPICS.down("alpha") not in topics:
            event = alpha.wait(Received)
            topics += [event.topic] if event.payload != SETTLE else []
        heard = TOPICS.beacon in topics


def is_settling(event: LinkEvent) -> bool:
    """Whether this is one of `settle`'s messages."""
    return isinstance(event, Received) and event.payload == SETTLE


def settle(sender: Link, receiver: Link, topic: str) -> None:
    """Publish until it arrives: only then has the broker taken the subscription."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        sender.transport.publish(topic, SETTLE)
        try:
            event = receiver._events.get(timeout=0.1)
        except queue.Empty:
            continue
        if isinstance(event, Received) and event.topic == topic:
            return
    raise AssertionError(f"nothing arrived on {topic} within {DEADLINE_S} s")
