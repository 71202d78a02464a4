"""The client's loop: whatever ends it, nobody goes on believing that the device is online."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client import linking
from edge_client.config import ClientConfig
from edge_client.data.config import DataConfig
from edge_client.runner import run_client
from edge_client.session import Session
from edge_client.trainers.opening import available_runtimes
from fedtide.errors import BrokerError, StateError
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.messages import Envelope, Presence, decode
from fedtide.transport import Broken, Deliver, Disconnected, LinkEvent, Refused, Will

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)


class Scripted(MemoryTransport):
    """Connects, then delivers what the test wants."""

    broker = MemoryBroker()
    events: tuple[LinkEvent, ...] = ()
    client_id = ""

    def __init__(self, _config: object, client_id: str, deliver: Deliver, will: Will) -> None:
        super().__init__(self.broker, deliver, will)
        Scripted.client_id = client_id

    def start(self) -> None:
        super().start()
        for event in self.events:
            self.deliver(event)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClientConfig]:
    monkeypatch.setattr(linking, "MqttTransport", Scripted)
    monkeypatch.setattr(Scripted, "broker", MemoryBroker())
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((3, 2), np.float32), y=np.zeros(3, np.int64))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield ClientConfig("f", tmp_path / "state", DataConfig(data), "d")
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


def presence() -> Presence:
    envelope = decode(Scripted.broker.retained["fedtide/1/f/presence/d"])
    assert isinstance(envelope, Envelope)
    assert isinstance(envelope.body, Presence)
    return envelope.body


def test_a_client_that_ends_on_an_error_says_goodbye(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StateError("no space left on /home/somebody")

    monkeypatch.setattr(Session, "link_event", full)
    with pytest.raises(StateError, match="no space"):
        run_client(config)
    assert not presence().online
    assert presence().reason == "ended by an error; the device's own log says why"


def test_a_link_that_failed_ends_the_client(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "events", (Refused("banned for a while"), Broken("a bug")))
    with pytest.raises(BrokerError, match="a bug"):
        run_client(config)
    assert not presence().online


def test_no_two_devices_have_the_same_client_id(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names may hold dots: a.b and c were a and b.c to the broker, which cut each off in turn."""
    monkeypatch.setattr(Scripted, "events", (Broken("enough"),))
    with pytest.raises(BrokerError):
        run_client(config)
    assert Scripted.client_id == "f/d"


def test_systemd_hears_how_it_goes(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """READY comes once the state is open and the link started, STATUS with every turn."""
    monkeypatch.setattr(Scripted, "events", (Disconnected("cut", 1_000), Broken("enough")))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        with pytest.raises(BrokerError):
            run_client(config)
        said = [systemd.recv(4096).decode() for _ in range(4)]
    assert said[0] == "READY=1"
    assert said[1].startswith("STATUS=idle: no coordinator of federation 'f' answers")
    assert said[2].startswith("STATUS=idle: no link to the broker")
    assert said[3] == "STOPPING=1"


def test_a_client_without_room_is_starting_not_ready(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise StateError("no space left", no_room=True)

    monkeypatch.setattr(Session, "start", full)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        run_client(config)
        said = [systemd.recv(4096).decode() for _ in range(2)]
    assert said == ["EXTEND_TIMEOUT_USEC=600000000\nSTATUS=no space left", "STOPPING=1"]
