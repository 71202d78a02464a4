"""The MQTT link against brokers that are slow, gone or odd: scripted ones, one behaviour each."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest

from fedtide import back_off, mqtt, pulse
from fedtide.config import BrokerConfig
from fedtide.errors import ConfigError
from fedtide.limits import BLOCK_BYTES
from fedtide.mqtt import MqttTransport
from fedtide.paho_client import Client, without_nagle
from fedtide.transport import (
    Arriving,
    Broken,
    Connected,
    Delivered,
    Disconnected,
    LinkEvent,
    Received,
    Refused,
)

TOPIC = "fedtide/1/f/up/d"
WAIT_S = 10.0
CONNACK = b"\x20\x02\x00\x00"


class Wire:
    """A connection at the broker's end, read packet by packet."""

    def __init__(self, sock: socket.socket, pause: Callable[[], None]) -> None:
        self.sock = sock
        self._pause = pause
        self._buffer = bytearray()

    def packet(self) -> tuple[int, bytes]:
        """First byte and body of the next packet."""
        length, shift, at = 0, 0, 1
        while True:
            self._need(at + 1)
            length |= (self._buffer[at] & 127) << shift
            shift += 7
            at += 1
            if self._buffer[at - 1] < 128:
                break
            assert at < 5, "a broken remaining length"
        self._need(at + length)
        first, body = self._buffer[0], bytes(self._buffer[at : at + length])
        del self._buffer[: at + length]
        return first, body

    def _need(self, count: int) -> None:
        while len(self._buffer) < count:
            self._pause()
            content = self.sock.recv(16_384)
            if not content:
                raise EOFError
            self._buffer += content


Script = Callable[[Wire], None]


@contextmanager
def scripted_broker(
    script: Script, pause: Callable[[], None] = lambda: None, **config: object
) -> Iterator[tuple[BrokerConfig, list[str]]]:
    """Each connection runs `script`; what it asserts in vain is in the list."""
    failures: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)

        def serve(sock: socket.socket) -> None:
            with sock, suppress(EOFError, OSError):
                try:
                    script(Wire(sock, pause))
                except AssertionError as exc:
                    failures.append(str(exc))

        def accept() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = server.accept()
                    threading.Thread(target=serve, args=(sock,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        values: dict[str, object] = {"protocol": "3.1.1", "reconnect_ms_max": 500, **config}
        yield BrokerConfig("127.0.0.1", server.getsockname()[1], **values), failures  # type: ignore[arg-type]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def taking(wire: Wire) -> None:
    """A broker that takes publications of one repeated byte, and confirms them."""
    assert wire.packet()[0] >> 4 == 1
    wire.sock.sendall(CONNACK)
    while True:
        first, body = wire.packet()
        if first >> 4 != 3:
            assert first >> 4 in (12, 14), f"packet {first:#x}"
            continue
        end = 2 + int.from_bytes(body[:2], "big")
        assert body[2:end] == TOPIC.encode(), "a broken topic"
        assert len(set(body[end + 2 :])) == 1, "two publications in one another"
        wire.sock.sendall(b"\x40\x02" + body[end : end + 2])


def wait_for(events: queue.SimpleQueue[LinkEvent], kind: type[LinkEvent]) -> LinkEvent:
    deadline_s = time.monotonic() + WAIT_S
    while True:
        event = events.get(timeout=max(0.01, deadline_s - time.monotonic()))
        if isinstance(event, kind):
            return event


def test_publications_over_a_slow_uplink_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads wrote to one socket: each the rest of a packet that the other had begun."""
    nagle = without_nagle

    def small_buffer(client: object, data: object, sock: socket.socket) -> None:
        nagle(client, data, sock)  # type: ignore[arg-type]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)

    monkeypatch.setattr(mqtt, "without_nagle", small_buffer)
    dice = random.Random(1)
    never = threading.Event()

    def drain_slowly() -> None:
        if dice.random() < 0.3:
            never.wait(dice.random() * 0.002)

    with scripted_broker(taking, drain_slowly) as (config, failures):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        wait_for(events, Connected)
        under_way: set[int] = set()
        confirmed = 0
        end_s = time.monotonic() + 3.0
        while time.monotonic() < end_s and not failures:
            while len(under_way) < 5:
                content = bytes([confirmed % 251]) * dice.choice((114_000, 114_000, 200))
                token = link.publish(TOPIC, content)
                assert token is not None, failures
                under_way.add(token)
            event = wait_for(events, Delivered)
            assert isinstance(event, Delivered)
            under_way.discard(event.token)
            confirmed += 1
        link.stop()
    assert failures == []
    assert confirmed > 50


def test_a_publication_goes_out_at_once() -> None:
    """The network thread sleeps up to a second when nothing happens; a publication wakes it."""
    with scripted_broker(taking) as (config, failures):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        wait_for(events, Connected)
        started_s = time.monotonic()
        for _ in range(20):
            assert link.publish(TOPIC, b"x") is not None
            wait_for(events, Delivered)
        assert time.monotonic() - started_s < 5.0
        link.stop()
    assert failures == []


def test_a_link_opens_no_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may be forbidden to bind and to listen; paho would do both, to no end."""

    def refused(*_: object) -> None:
        raise PermissionError("bind or listen")

    with scripted_broker(taking) as (config, failures):
        monkeypatch.setattr(socket.socket, "bind", refused)
        monkeypatch.setattr(socket.socket, "listen", refused)
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        wait_for(events, Connected)
        assert link.publish(TOPIC, b"x") is not None
        wait_for(events, Delivered)
        link.stop()
    assert failures == []


def test_a_broker_that_misreads_mqtt_5_is_spoken_to_in_the_older_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.2)
    levels: list[int] = []

    def old(wire: Wire) -> None:
        _, body = wire.packet()
        levels.append(body[6])
        if body[6] == 4:
            wire.sock.sendall(CONNACK)
        wire.packet()

    with scripted_broker(old, protocol="auto") as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        assert wait_for(events, Connected) == Connected("MQTT 3.1.1", mock.ANY)
        link.stop()
    assert levels == [5, 4]


CONNACK_5 = b"\x20\x03\x00\x00\x00"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # It spoke 5 once and then froze: that is no sign of an old broker.
        (("yes", "no", "no", "yes"), [5, 5, 5, 5]),
        # Frozen as we came: a link over 3.1.1 that is soon lost is followed by another try.
        (("no", "yes", "yes"), [5, 4, 5]),
    ],
)
def test_a_broker_that_freezes_is_not_taken_for_an_old_one(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[str, ...], expected: list[int]
) -> None:
    """Over 3.1.1 it does not tell its packet limit, and what is too large cuts the link."""
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.2)
    levels: list[int] = []

    def freezing(wire: Wire) -> None:
        _, body = wire.packet()
        levels.append(body[6])
        if answers[min(len(levels), len(answers)) - 1] == "no":
            wire.packet()
        wire.sock.sendall(CONNACK if body[6] == 4 else CONNACK_5)
        if len(levels) == len(answers):
            wire.packet()

    with scripted_broker(freezing, protocol="auto", reconnect_ms_max=500) as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        for _ in range(answers.count("yes")):
            wait_for(events, Connected)
        link.stop()
    assert levels == expected


def test_a_broker_s_own_keepalive_is_kept() -> None:
    """It ends links that are silent for one and a half of what it said, not of what we asked."""
    heard: list[int] = []
    asked: list[bytes] = []

    def strict(wire: Wire) -> None:
        asked.append(wire.packet()[1])
        wire.sock.sendall(b"\x20\x06\x00\x00\x03\x13\x00\x02")  # Server Keep Alive: 2 s
        wire.sock.settimeout(8.0)
        heard.append(wire.packet()[0] >> 4)
        wire.sock.sendall(b"\xd0\x00")

    with scripted_broker(strict, protocol="5", keepalive_s=60) as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        wait_for(events, Disconnected)
        link.stop()
    assert heard[0] == 12, "a ping"
    limit = mqtt._IN_BYTES_MAX
    assert b"\x27" + limit.to_bytes(4, "big") in asked[0], "nothing larger is sent to us"


def test_a_refusal_is_said_and_the_link_goes_on_trying() -> None:
    answers = [b"\x20\x02\x00\x05", CONNACK]

    def refusing_once(wire: Wire) -> None:
        wire.packet()
        wire.sock.sendall(answers.pop(0))
        wire.packet()

    with scripted_broker(refusing_once) as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        refused = wait_for(events, Refused)
        wait_for(events, Connected)
        link.stop()
    assert isinstance(refused, Refused)
    assert "refuses the connection" in refused.reason


def test_two_clients_of_one_name_do_not_cut_each_other_off_for_ever() -> None:
    """Each would come back at once and throw the other out: so after three times one gives way."""

    def taken_over(wire: Wire) -> None:
        wire.packet()
        wire.sock.sendall(b"\x20\x03\x00\x00\x00" + b"\xe0\x02\x8e\x00")
        wire.packet()

    with scripted_broker(taken_over, protocol="5") as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "f/d", events.put)
        link.start()
        lost = [wait_for(events, Disconnected) for _ in range(back_off.TAKEOVERS_MAX)]
        link.stop()
    pauses_ms = []
    for event in lost:
        assert isinstance(event, Disconnected)
        assert event.taken_over
        assert "another client has connected as 'f/d'" in event.reason
        pauses_ms.append(event.retry_ms)
    assert max(pauses_ms[:-1]) <= config.reconnect_ms_max
    assert pauses_ms[-1] >= back_off.GIVE_WAY_S * 1000


@pytest.mark.parametrize(("stable_s", "grows"), [(10.0, True), (0.0, False)])
def test_links_that_carry_blocks_and_are_cut_without_a_word_come_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, stable_s: float, grows: bool
) -> None:
    """So two clients of one name, both at work, do not cut each other off twice a second; but a
    link that lived for a while starts afresh."""
    monkeypatch.setattr(back_off, "STABLE_S", stable_s)
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    body = len(TOPIC).to_bytes(2, "big") + TOPIC.encode() + b"x" * BLOCK_BYTES
    length = bytes([len(body) & 127 | 128, len(body) >> 7 & 127 | 128, len(body) >> 14])

    def cutting(wire: Wire) -> None:
        wire.packet()
        wire.sock.sendall(CONNACK + b"\x30" + length + body)

    with scripted_broker(cutting, reconnect_ms_max=1_000) as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        wait_for(events, Received)
        lost = wait_for(events, Disconnected)
        link.stop()
    assert isinstance(lost, Disconnected)
    assert lost.retry_ms == (1_000 if grows else 500)


def test_a_packet_that_is_too_large_ends_the_link_before_it_is_read() -> None:
    """MQTT 3.1.1 has no word for what we take: 256 MB would be allocated."""

    def flooding(wire: Wire) -> None:
        wire.packet()
        wire.sock.sendall(CONNACK + b"\x30\xff\xff\xff\x7f" + b"x" * 10)
        wire.packet()

    with scripted_broker(flooding) as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        lost = wait_for(events, Disconnected)
        link.stop()
    assert isinstance(lost, Disconnected)
    assert lost.reason.startswith("the broker sends a packet of 268435455 bytes")


def test_a_link_that_is_stopped_while_it_connects_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connecting, stopped = threading.Event(), threading.Event()
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    connect = Client.connect

    def slow(self: Client, *args: object, **named: object) -> object:
        connecting.set()
        assert stopped.wait(WAIT_S)
        return connect(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "connect", slow)
    with scripted_broker(lambda wire: heard.put(wire.sock.recv(1))) as (config, _):
        link = MqttTransport(config, "x", lambda _event: None)
        link.start()
        assert connecting.wait(WAIT_S)
        link._stopped.set()  # as `stop` does first, before it waits for the thread
        stopped.set()
        link._thread.join(WAIT_S)
        assert not link._thread.is_alive()
    assert heard.empty()


@pytest.fixture
def short_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keep-alive of 1.2 s, and 0.8 s for an answer: too short for a configuration file."""
    monkeypatch.setattr(pulse, "ANSWER_MS", 800)
    monkeypatch.setattr(mqtt, "Pulse", lambda _keepalive_ms, at_ms: pulse.Pulse(1_200, at_ms))


@pytest.mark.usefixtures("short_pulse")
def test_a_broker_that_falls_silent_is_left_without_a_farewell() -> None:
    """Half-open: pings are taken, nothing comes back. A farewell would keep the will unsaid."""
    heard: list[int] = []

    def hanging(wire: Wire) -> None:
        wire.packet()
        wire.sock.sendall(CONNACK)
        while True:
            heard.append(wire.packet()[0] >> 4)

    with scripted_broker(hanging) as (config, failures):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        wait_for(events, Connected)
        lost = wait_for(events, Disconnected)
        link.stop()
    assert isinstance(lost, Disconnected)
    assert lost.reason.startswith("nothing has moved on the link for")
    assert set(heard) == {12}, "pings, and no packet of type 14"
    assert failures == []


@pytest.mark.usefixtures("short_pulse")
def test_a_message_longer_than_the_keepalive_keeps_the_link_and_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt, "ARRIVING_MS", 100)
    never = threading.Event()
    body = len(TOPIC).to_bytes(2, "big") + TOPIC.encode() + b"x" * 100
    message = b"\x30" + bytes([len(body)]) + body

    def slow(wire: Wire) -> None:
        wire.packet()
        wire.sock.sendall(CONNACK)
        for at in range(0, len(message), 2):
            wire.sock.sendall(message[at : at + 2])
            never.wait(0.05)
        wire.packet()

    with scripted_broker(slow) as (config, _):
        events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        link = MqttTransport(config, "x", events.put)
        link.start()
        seen: list[LinkEvent] = []
        while not (seen and isinstance(seen[-1], Received)):
            seen.append(events.get(timeout=WAIT_S))
        link.stop()
    assert isinstance(seen[0], Connected)
    assert len(seen) > 5
    assert {type(event) for event in seen[1:-1]} == {Arriving}


def test_a_failure_of_the_link_itself_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: MqttTransport) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(MqttTransport, "_new_client", fail)
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    link = MqttTransport(BrokerConfig(), "x", events.put)
    link.start()
    broken = wait_for(events, Broken)
    link.stop()
    assert isinstance(broken, Broken)
    assert "RuntimeError: a bug" in broken.reason


@pytest.mark.parametrize("key", ["password_file", "ca_file"])
def test_files_that_cannot_be_used_are_an_error_at_once(tmp_path: Path, key: str) -> None:
    """Not in the network thread, where the client would wait for ever."""
    junk = tmp_path / "junk"
    junk.write_bytes(b"")
    for path in (tmp_path / "missing", junk):
        config = BrokerConfig(username="d", **{key: path})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=key):
            MqttTransport(config, "x", lambda _event: None)
