"""A broker that was broken into, and a federation of real processes that trusts it with nothing.

Mosquitto asks devices and coordinator for certificates of the federation's authority, as it should.
But it has a second door on the loopback, without any lock, behind which nobody's rights are
limited: `Intruder` hears everything, and says whatever it likes wherever it likes.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any, Self, TypeVar

from demo.brokers import HOST, free_port, mosquitto_path, write_private
from demo.local import toml, wait_for, wait_for_log
from demo.processes import Child
from fedtide.config import BrokerConfig
from fedtide.files import write_atomically
from fedtide.identity import Identity, load_identity
from fedtide.keys import new_key, public_bytes, save_key
from fedtide.launch import module_command
from fedtide.messages import AnyMessage, Envelope, decode
from fedtide.mqtt import MqttTransport
from fedtide.seal import open_sealed
from fedtide.topics import Topics
from fedtide.transport import Connected, LinkEvent, Received
from tests.committed import rows
from tests.identities import Authority

WAIT_S = 60.0
DEVICE_PYTHON = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
M = TypeVar("M")


def _port_answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


class Siege:
    """See the module. A context manager that stops all that it started."""

    def __init__(self, folder: Path, bundle: Path, data: Callable[[str], Path]) -> None:
        self.folder = folder
        self.authority = Authority("tides")
        self.topics = Topics("tides")
        self.port, self.door = free_port(), free_port()
        self.members = folder / "members.json"
        self._keys: dict[str, str] = {}
        self._bundle = bundle
        self._data = data
        self.identities: dict[str, Identity] = {}
        self.processes: dict[str, Child] = {}
        self.broker = Child("broker", self._mosquitto(), folder / "broker.log")

    def __enter__(self) -> Self:
        self.broker.start()
        wait_for(lambda: _port_answers(self.door), "the broker's start", WAIT_S)
        self.intruder = Intruder(self.door)
        self.add_coordinator()
        for name in ("alpha", "beta"):
            self.add_device(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.intruder.stop()
        for child in self.processes.values():
            child.ask_to_stop()
        for child in (*self.processes.values(), self.broker):
            child.stop()

    def _mosquitto(self) -> list[str]:
        binary = mosquitto_path()
        assert binary is not None, "apt install mosquitto"
        key = new_key()
        save_key(self.folder / "broker.key", key)
        pem = self.authority.certify("broker", key.public_key(), hosts=("localhost",))
        (self.folder / "broker.pem").write_bytes(pem)
        (self.folder / "ca.pem").write_bytes(self.authority.pem)
        lines = [
            "per_listener_settings true",
            f"user {pwd.getpwuid(os.getuid()).pw_name}",
            "max_queued_messages 10000",
            "log_dest stderr",
            f"listener {self.port} {HOST}",
            f"cafile {self.folder / 'ca.pem'}",
            f"certfile {self.folder / 'broker.pem'}",
            f"keyfile {self.folder / 'broker.key'}",
            "require_certificate true",
            "use_identity_as_username true",
            "allow_anonymous false",
            f"listener {self.door} {HOST}",
            "allow_anonymous true",
        ]
        write_private(self.folder / "mosquitto.conf", "\n".join(lines) + "\n")
        return [binary, "-c", str(self.folder / "mosquitto.conf")]

    # ---- who takes part ----

    def identity(self, name: str) -> Identity:
        """Made once; of a device, it is registered."""
        if name not in self.identities:
            self.identities[name] = self.authority.identity(self.folder / f"{name}.identity", name)
            if name != "coordinator":
                self._keys[name] = public_bytes(self.identities[name].key).hex()
            self.write_members()
        return self.identities[name]

    def copy_identity(self, name: str, copy: str) -> None:
        """As when an SD card is copied."""
        folder = self.folder / f"{copy}.identity"
        shutil.copytree(self.identity(name).folder, folder)
        self.identities[copy] = load_identity(folder)

    def revoke(self, name: str) -> None:
        """It is a member no more, as the registrar would have it."""
        del self._keys[name]
        self.write_members()

    def write_members(self) -> None:
        devices = {name: {"key": key} for name, key in self._keys.items()}
        write_atomically(self.members, json.dumps({"devices": devices}).encode())

    def add_coordinator(self) -> None:
        config = {
            "bundle": str(self._bundle.resolve()),
            "members": str(self.members),
            "hello_ms": 2_000,
            "rounds": {"count": 1_000_000, "cohort_fraction": 1.0, "collect_ms": 3_000},
            "vetting": {"norm_factor": 0.0},
        }
        self._add("coordinator", "coordinator", config, sys.executable)

    def add_device(self, name: str) -> Child:
        config = {
            "data": {"path": str(self._data(name).resolve())},
            "training": {"runtime": "portable", "cpu_share": 0.02},
        }
        return self._add(name, "client", config, DEVICE_PYTHON)

    def _add(self, name: str, command: str, config: Mapping[str, Any], python: str) -> Child:
        whole = {
            "federation": "tides",
            "state_dir": str(self.folder / name),
            "identity": str(self.identity(name).folder),
            **config,
            "broker": {"host": "localhost", "port": self.port, "reconnect_ms_max": 1_000},
        }
        write_private(self.config(name), toml(whole))
        arguments = module_command(
            "fedtide", command, "--config", str(self.config(name)), python=python
        )
        child = self.processes[name] = Child(name, arguments, self.folder / f"{name}.log")
        child.start()
        return child

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.toml"

    # ---- what came of it ----

    def log(self, name: str) -> str:
        return self.processes[name].log()

    def wait_for_log(self, name: str, text: str, after: int = 0) -> None:
        """Until a process has said this in what it logged since `after`."""
        wait_for_log(self.processes[name], text, WAIT_S, after)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return rows(self.folder / "coordinator", sql)

    def count(self, name: str) -> int:
        """How often the coordinator has counted this, as it has committed."""
        return sum(row[0] for row in self.query(f"SELECT value FROM counts WHERE name = '{name}'"))

    def accepted(self, device: str = "%") -> int:
        """Updates that were accepted, of one device or all."""
        found = self.query(
            f"SELECT COUNT(*) FROM updates WHERE verdict = 'accepted' AND device_id LIKE '{device}'"
        )
        return int(found[0][0]) if found else 0

    def wait_for_updates(self, *devices: str, more: int = 2) -> None:
        """Until each of these has got some more updates accepted: the federation goes on."""
        wanted = {device: self.accepted(device) + more for device in devices}

        def are_there() -> bool:
            return all(self.accepted(device) >= count for device, count in wanted.items())

        wait_for(are_there, f"{more} more updates of {' and '.join(devices)}", WAIT_S)

    def refused_once_more(self, kind: str, attack: Callable[[], object]) -> None:
        """The coordinator counts what `attack` says under this reason."""
        before = self.count(f"refused: {kind}")
        attack()
        wait_for(lambda: self.count(f"refused: {kind}") > before, f"refused: {kind}", WAIT_S)

    def refused_by(self, device: str, reason: str, attack: Callable[[], object]) -> None:
        """A device logs this reason for what `attack` says."""
        after = len(self.log(device))
        attack()
        self.wait_for_log(device, f"is refused: {reason}", after)


class Intruder:
    """Hears everything, and may say anything anywhere."""

    def __init__(self, port: int) -> None:
        self.heard: list[Received] = []
        self._up: Queue[None] = Queue()
        broker = BrokerConfig(host=HOST, port=port)
        self._link = MqttTransport(broker, "intruder", self._deliver)
        self._link.start()
        self._up.get(timeout=WAIT_S)

    def _deliver(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            self._link.subscribe(["fedtide/#"])
            self._up.put(None)
        elif isinstance(event, Received):
            self.heard.append(event)

    def stop(self) -> None:
        self._link.stop()

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert self._link.publish(topic, payload, retain=retain) is not None

    def newest(self, topic: str, kind: type[M], *, newer_than: int = 0) -> tuple[bytes, M]:
        """The newest message of this kind on a topic, and its bytes as they were sent."""
        found: list[tuple[bytes, M]] = []

        def look() -> bool:
            for event in self.heard[newer_than:][::-1]:
                body = inside(event.payload) if event.topic == topic else None
                if isinstance(body, kind):
                    found.append((event.payload, body))
                    return True
            return False

        wait_for(look, f"a {kind.__name__} on {topic}", WAIT_S)
        return found[0]


def inside(payload: bytes) -> AnyMessage | None:
    """What is in a seal: it hides nothing."""
    sealed = open_sealed(payload)
    envelope = None if sealed is None else decode(sealed.message)
    return envelope.body if isinstance(envelope, Envelope) else None
