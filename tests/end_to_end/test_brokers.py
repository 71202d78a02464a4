"""The brokers we start: nobody anonymous, every device confined, no luck in starting."""

from __future__ import annotations

import queue
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from demo.brokers import COORDINATOR, OBSERVER, Broker, find_broker, write_private
from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError, ConfigError
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Connected, Delivered, Disconnected, LinkEvent, Received, Refused

TOPICS = Topics("tides")
DEADLINE_S = 20.0


@contextmanager
def linked(
    access: BrokerConfig, client_id: str
) -> Iterator[tuple[MqttTransport, queue.Queue[LinkEvent]]]:
    events: queue.Queue[LinkEvent] = queue.Queue()
    transport = MqttTransport(access, client_id, events.put)
    transport.start()
    try:
        yield transport, events
    finally:
        transport.stop()


def first_event(access: BrokerConfig) -> LinkEvent:
    with linked(access, "somebody") as (_, events):
        return events.get(timeout=DEADLINE_S)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_two_clients_of_one_name_cut_each_other_off_ever_more_rarely(
    tmp_path: Path, protocol: Literal["5", "3.1.1"]
) -> None:
    """Whether the broker says that a name was taken over (MQTT 5, newer ones) or not."""
    with Broker(find_broker("mosquitto"), tmp_path, (COORDINATOR, "alpha")) as broker:
        access = msgspec.structs.replace(
            broker.access("alpha"), protocol=protocol, reconnect_ms_max=60_000
        )
        with linked(access, "tides/alpha") as (_, events), linked(access, "tides/alpha"):
            lost: list[Disconnected] = []
            while len(lost) < 3:
                event = events.get(timeout=DEADLINE_S)
                if isinstance(event, Disconnected):
                    lost.append(event)
    for times, event in enumerate(lost):
        assert event.retry_ms >= 500 << times
        assert "another client" in event.reason
        assert "tides/alpha" in event.reason


def test_a_known_user_gets_in(broker: Broker) -> None:
    assert isinstance(first_event(broker.access("alpha")), Connected)


def test_a_wrong_password_is_refused_for_good(broker: Broker) -> None:
    wrong = msgspec.structs.replace(
        broker.access("alpha"), password_file=broker.password_file("beta")
    )
    event = first_event(wrong)
    assert isinstance(event, Refused)
    assert f"127.0.0.1:{broker.port}" in event.reason


def test_nobody_is_anonymous(broker: Broker) -> None:
    anonymous = msgspec.structs.replace(broker.access("alpha"), username=None, password_file=None)
    assert isinstance(first_event(anonymous), Refused)


def test_an_unknown_user_is_refused(broker: Broker) -> None:
    unknown = msgspec.structs.replace(broker.access("alpha"), username="mallory")
    assert isinstance(first_event(unknown), Refused)


def test_auto_finds_the_protocol_that_the_broker_speaks(broker: Broker) -> None:
    access = msgspec.structs.replace(broker.access("alpha"), protocol="auto")
    with linked(access, "alpha") as (_, events):
        while not isinstance(event := events.get(timeout=DEADLINE_S), Connected):
            pass
    assert event.protocol == ("MQTT 5" if broker.kind == "mosquitto" else "MQTT 3.1.1")


@pytest.mark.parametrize(
    "forbidden",
    [
        TOPICS.up("beta"),
        TOPICS.presence("beta"),
        TOPICS.down("alpha"),
        TOPICS.down("beta"),
        TOPICS.status,
        TOPICS.beacon,
        TOPICS.chunk("ab" * 32, 0),
        "elsewhere/alpha",
    ],
)
def test_a_device_cannot_speak_for_another(broker: Broker, forbidden: str) -> None:
    heard = round_trip(broker, writer="alpha", reader=COORDINATOR, topic=forbidden)
    assert heard == [b"end"]


@pytest.mark.parametrize("own", [TOPICS.up("alpha"), TOPICS.presence("alpha")])
def test_a_device_speaks_for_itself(broker: Broker, own: str) -> None:
    assert round_trip(broker, writer="alpha", reader=COORDINATOR, topic=own) == [b"try", b"end"]


@pytest.mark.parametrize(
    "forbidden", [TOPICS.down("beta"), TOPICS.up("beta"), TOPICS.presence("beta"), TOPICS.status]
)
def test_a_device_cannot_read_what_is_anothers(broker: Broker, forbidden: str) -> None:
    heard = round_trip(broker, writer=COORDINATOR, reader="alpha", topic=forbidden)
    assert heard == [b"end"]


@pytest.mark.parametrize(
    "common", [TOPICS.down("alpha"), TOPICS.beacon, TOPICS.chunk("ab" * 32, 7)]
)
def test_a_device_reads_what_is_meant_for_it(broker: Broker, common: str) -> None:
    heard = round_trip(broker, writer=COORDINATOR, reader="alpha", topic=common)
    assert heard == [b"try", b"end"]


def test_the_observer_hears_everything_and_says_nothing(broker: Broker) -> None:
    for topic in (TOPICS.up("alpha"), TOPICS.presence("alpha")):
        heard = round_trip(broker, writer="alpha", reader=OBSERVER, topic=topic)
        assert heard == [b"try", b"end"]
    heard = round_trip(broker, writer=COORDINATOR, reader=OBSERVER, topic=TOPICS.status)
    assert heard == [b"try", b"end"]
    for topic in (TOPICS.up(OBSERVER), TOPICS.presence(OBSERVER), TOPICS.status):
        heard = round_trip(broker, writer=OBSERVER, reader=COORDINATOR, topic=topic)
        assert heard == [b"end"]


def test_a_killed_broker_starts_again_on_its_port(broker: Broker) -> None:
    port = broker.port
    with linked(broker.access("alpha"), "alpha") as (_, events):
        assert isinstance(events.get(timeout=DEADLINE_S), Connected)
        broker.kill()
        broker.start()
        while not isinstance(events.get(timeout=DEADLINE_S), Connected):
            pass
    assert broker.port == port


def test_passwords_are_readable_by_their_owner_only(broker: Broker) -> None:
    for path in broker.folder.iterdir():
        if path.suffix in (".password", ".json") or path.name in ("passwords", "mosquitto.conf"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_broker_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    broker = Broker(find_broker("mosquitto"), tmp_path, ())
    write_private(tmp_path / "mosquitto.conf", "nonsense true\n")
    with pytest.raises(BrokerError, match=r"(?s)ended with code.*nonsense"):
        broker.start()


def test_an_unknown_broker_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="emqx is not installed"):
        find_broker("emqx")


def round_trip(broker: Broker, *, writer: str, reader: str, topic: str) -> list[bytes]:
    """What `reader` hears of "try" on `topic`, up to an "end" that it surely hears.

    The coordinator says "end" on a topic that the reader may read, after the broker has confirmed
    "try"; brokers deliver to one reader in the order in which they confirm.
    """
    device = "alpha" if reader in (COORDINATOR, OBSERVER) else reader
    sure = TOPICS.up("sure") if device != reader else TOPICS.down(reader)
    with (
        linked(broker.access(reader), f"{reader}-reads") as (listens, heard),
        linked(broker.access(COORDINATOR), "helper") as (helper, helped),
        linked(broker.access(writer), f"{writer}-writes") as (speaks, said),
    ):
        for events in (heard, helped, said):
            assert isinstance(events.get(timeout=DEADLINE_S), Connected)
        listens.subscribe([topic])
        listens.subscribe([sure])
        wait_until_heard(helper, sure, heard)
        confirmed(speaks, said, topic, b"try")
        confirmed(helper, helped, sure, b"end")
        payloads: list[bytes] = []
        while b"end" not in payloads:
            event = heard.get(timeout=DEADLINE_S)
            if isinstance(event, Received) and event.payload != b"ready":
                payloads.append(event.payload)
        return payloads


def wait_until_heard(helper: MqttTransport, sure: str, heard: queue.Queue[LinkEvent]) -> None:
    """Both subscriptions work, as they were taken in order."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        helper.publish(sure, b"ready")
        with suppress(queue.Empty):
            if isinstance(heard.get(timeout=0.2), Received):
                return
    raise AssertionError(f"nothing arrived on {sure}")


def confirmed(
    speaker: MqttTransport, said: queue.Queue[LinkEvent], topic: str, payload: bytes
) -> None:
    """Publish, and wait for the broker's answer, whatever it is."""
    token = speaker.publish(topic, payload)
    while True:
        event = said.get(timeout=DEADLINE_S)
        if isinstance(event, Delivered) and event.token == token:
            return
