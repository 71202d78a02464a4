"""Real devices that have joined: their certificates renew, they get other names, they are revoked,
and the rounds go on; two of one identity are told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from demo.brokers import HOST
from edge_client.saved_session import SavedSession
from fedtide.config import BrokerConfig
from fedtide.failpoints import VARIABLE
from fedtide.files import write_atomically
from fedtide.identity import Identity, load_identity
from fedtide.inquiry import Inquiry
from fedtide.transport import Received
from tests import bundles
from tests.certified import FEDERATION, TOPICS, Process, Server, fedtide, wait_for

DEVICE_PYTHON = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
LIFE_DAYS = 365
CHANGES = {
    "count = 100 ": "count = 1_000_000 ",
    "collect_ms = 60_000": "collect_ms = 3_000",
    "[rounds]": "[rounds]\nback_off_ms = 200\nabandoned_max = 1000",
}


class Federation:
    """A server with a coordinator, and devices that have joined it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.data = folder / "data.npz"
        rng = np.random.default_rng(5)
        x, y = rng.normal(size=(40, 8)).astype(np.float32), rng.integers(0, 3, 40)
        np.savez(self.data, x=x, y=y)

    def start_coordinator(self) -> None:
        layout = self.server.layout
        text = layout.coordinator_toml.read_text()
        for old, new in CHANGES.items():
            assert old in text
            text = text.replace(old, new)
        layout.coordinator_toml.write_text(text)
        shutil.copytree(bundles.build("tiny_mlp"), layout.bundle)
        words = ("coordinator", "--config", str(layout.coordinator_toml))
        self.coordinator = self.server.run("coordinator", *words)

    def join(self, device: str) -> Path:
        """The folder of a device that has joined, with data, and slow enough to be at work."""
        place = self.folder / device
        fedtide("device", "join", self.server.add(device), "--folder", str(place))
        config = place / "client.toml"
        text = config.read_text()
        config.write_text(f'{text}\n[data]\npath = "{self.data}"\n[training]\ncpu_share = 0.05\n')
        return place

    def start(self, place: Path, name: str = "", **environment: str) -> Process:
        name = f"{name or place.name}-client"
        words = ("client", "--config", str(place / "client.toml"))
        return self.server.run(name, *words, environment=environment, python=DEVICE_PYTHON)

    def accepted(self, device: str) -> int:
        path = self.server.layout.home("coordinator") / "state/coordinator.db"
        if not path.exists():
            return 0
        query = "SELECT COUNT(*) FROM updates WHERE verdict = 'accepted' AND device_id = ?"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            try:
                return int(database.execute(query, (device,)).fetchone()[0])
            except sqlite3.OperationalError:  # not a table yet
                return 0

    def wait_for_updates(self, device: str, more: int = 2) -> None:
        wanted = self.accepted(device) + more
        wait_for(
            lambda: self.accepted(device) >= wanted,
            f"{more} more updates of {device}; the coordinator:\n",
            self.coordinator.text,
            seconds=60,
        )

    def age(self, place: Path, days: int) -> Identity:
        """Let the device's certificate be as old as this."""
        identity = load_identity(place / "identity")
        then = datetime.now(UTC) - timedelta(days=days)
        pem = self.server.authority.sign_device(identity.name, identity.key.public_key(), then)
        self.server.registry.renew(identity.name, pem, round(then.timestamp() * 1000))
        write_atomically(place / "identity/certificate.pem", pem)
        return load_identity(place / "identity")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    with Server(folder / "server") as server:
        federation = Federation(server, folder)
        federation.start_coordinator()
        yield federation


def test_a_certificate_near_its_end_renews_while_the_rounds_go_on(federation: Federation) -> None:
    place = federation.join("alpha")
    before = federation.age(place, LIFE_DAYS - 30)
    client = federation.start(place)
    client.says("a new certificate, valid until")
    after = load_identity(place / "identity").certificate
    assert after.not_valid_after_utc - before.certificate.not_valid_after_utc > timedelta(days=300)
    federation.wait_for_updates("alpha")
    assert client.text().count("connected over") == 2
    assert "is dropped" not in client.text()
    assert client.stop() == 0
    shutil.copytree(place / "identity", place / "copy")
    again = federation.start(place)
    again.says("connected over")
    federation.wait_for_updates("alpha", 1)
    assert "a new certificate" not in again.text().split("stopping")[-1]
    again.stop()
    assert load_identity(place / "identity").certificate == after, "a young one stays"


def test_a_running_device_gets_another_name_and_goes_on(federation: Federation) -> None:
    place = federation.join("old-name")
    client = federation.start(place)
    federation.wait_for_updates("old-name")
    federation.server.device("rename", "old-name", "new-name")
    client.says("this device is 'new-name' from now on")
    federation.wait_for_updates("new-name")
    assert load_identity(place / "identity").name == "new-name"
    assert not (place / "identity/former_name").exists()
    members = json.loads(federation.server.config.members.read_text())["devices"]
    assert "new-name" in members
    assert "old-name" not in members
    wait_for(lambda: retained_presence(federation) == {"new-name"}, "the old name's presence")
    assert client.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", ["renewal: former name kept", "renewal: certificate stored"])
def test_a_power_cut_while_the_name_changes_loses_nothing(
    federation: Federation, step: str
) -> None:
    old, new = (f"{step.rsplit(maxsplit=1)[-1]}-{when}" for when in ("old", "new"))
    place = federation.join(old)
    client = federation.start(place, **{VARIABLE: f"{step}=kill"})
    client.says("connected over")
    federation.server.device("rename", old, new)
    assert client.popen.wait(timeout=30) == -signal.SIGKILL
    again = federation.start(place)
    federation.wait_for_updates(new, 1)
    assert again.stop() == 0
    assert SavedSession(place / "state", FEDERATION, new).load().device == new


def test_a_revoked_device_is_told_and_does_not_hammer(federation: Federation) -> None:
    place = federation.join("fired")
    client = federation.start(place)
    federation.wait_for_updates("fired", 1)
    federation.server.device("revoke", "fired")
    client.says("the broker does not take our certificate: certificate revoked; trying again in")
    pause_s = int(client.text().split("trying again in ")[-1].split(" s")[0])
    assert pause_s >= 300
    assert client.stop() == 0


def test_two_machines_of_one_identity_are_both_told(federation: Federation) -> None:
    place = federation.join("twin")
    copy = federation.folder / "twin-copy"
    shutil.copytree(place, copy)
    one, other = federation.start(place), federation.start(copy)
    for client in (one, other):
        client.says("another client named 'tides/twin'")
    for client in (one, other):
        client.stop()


def retained_presence(federation: Federation) -> set[str]:
    """Who has said that he is here."""
    identity = federation.server.identity("observer")
    port = federation.server.config.broker.port
    with Inquiry(identity.broker(BrokerConfig(host=HOST, port=port)), "test") as inquiry:
        inquiry.connect(10)
        inquiry.listen([TOPICS.presence("+")])
        here = set()
        for event in inquiry.events(1.0):
            if (
                isinstance(event, Received)
                and event.retained
                and b"\xa6online\xc3" in event.payload
            ):
                here.add(event.topic.rsplit("/", 1)[1])
    return here
