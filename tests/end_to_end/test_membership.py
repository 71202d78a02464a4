"""Real devices that have joined: their certificates renew, they get other names, they are revoked,
and the rounds go on; two of one identity are told."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demo.local import wait_for, wait_for_log
from edge_client.saved_session import SavedSession
from fedtide.failpoints import VARIABLE
from fedtide.files import write_atomically
from fedtide.identity import Identity, load_identity
from fedtide.inquiry import Inquiry
from fedtide.transport import Received
from tests.deployment import Deployment
from tests.server import FEDERATION, TOPICS, WAIT_S

LIFE_DAYS = 365


def joined(server: Deployment, name: str) -> Path:
    """The folder of a device that has joined, and is slow enough to be at work."""
    place = server.join(name)
    with (place / "client.toml").open("a") as config:
        config.write("[training]\ncpu_share = 0.05\n")
    return place


def age(server: Deployment, place: Path, days: int) -> Identity:
    """Let the device's certificate be as old as this."""
    identity = load_identity(place / "identity")
    then = datetime.now(UTC) - timedelta(days=days)
    with server.office() as office:
        pem = office.authority.sign_device(identity.name, identity.key.public_key(), then)
        office.registry.renew(identity.name, pem, round(then.timestamp() * 1000))
    write_atomically(place / "identity/certificate.pem", pem)
    return load_identity(place / "identity")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    rounds = {"collect_ms": 3_000, "back_off_ms": 200, "abandoned_max": 1_000}
    with Deployment(tmp_path_factory.mktemp("server"), **rounds) as server:
        yield server


def test_a_certificate_near_its_end_renews_while_the_rounds_go_on(server: Deployment) -> None:
    place = joined(server, "alpha")
    before = age(server, place, LIFE_DAYS - 30)
    client = server.start_client(place)
    wait_for_log(client, "a new certificate, valid until", WAIT_S)
    after = load_identity(place / "identity").certificate
    assert after.not_valid_after_utc - before.certificate.not_valid_after_utc > timedelta(days=300)
    server.wait_for_rounds(2, "alpha")
    assert client.log().count("connected over") == 2
    assert "is dropped" not in client.log()
    assert client.stop() == 0
    shutil.copytree(place / "identity", place / "copy")
    begun = len(client.log())
    again = server.start_client(place)
    wait_for_log(again, "connected over", WAIT_S, begun)
    server.wait_for_rounds(1, "alpha")
    assert "a new certificate" not in again.log()[begun:]
    again.stop()
    assert load_identity(place / "identity").certificate == after, "a young one stays"


def test_a_running_device_gets_another_name_and_goes_on(server: Deployment) -> None:
    place = joined(server, "old-name")
    client = server.start_client(place)
    server.wait_for_rounds(2, "old-name")
    server.device("rename", "old-name", "new-name")
    wait_for_log(client, "this device is 'new-name' from now on", WAIT_S)
    server.wait_for_rounds(2, "new-name")
    assert load_identity(place / "identity").name == "new-name"
    assert not (place / "identity/former_name").exists()
    members = json.loads(server.layout.members.read_text())["devices"]
    assert "new-name" in members
    assert "old-name" not in members
    wait_for(lambda: retained_presence(server) == {"new-name"}, "the old name's end", WAIT_S)
    assert client.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", ["renewal: former name kept", "renewal: certificate stored"])
def test_a_power_cut_while_the_name_changes_loses_nothing(server: Deployment, step: str) -> None:
    old, new = (f"{step.rsplit(maxsplit=1)[-1]}-{when}" for when in ("old", "new"))
    place = joined(server, old)
    client = server.start_client(place, **{VARIABLE: f"{step}=kill"})
    wait_for_log(client, "connected over", WAIT_S)
    server.device("rename", old, new)
    assert client.wait(WAIT_S) == -signal.SIGKILL
    again = server.start_client(place)
    server.wait_for_rounds(1, new)
    assert again.stop() == 0
    assert SavedSession(place / "state", FEDERATION, new).load().device == new


def test_a_revoked_device_is_told_and_does_not_hammer(server: Deployment) -> None:
    place = joined(server, "fired")
    client = server.start_client(place)
    server.wait_for_rounds(1, "fired")
    assert server.device("revoke", "fired") == "fired is revoked\n"
    refusal = "the broker does not take our certificate: certificate revoked; trying again in"
    wait_for_log(client, refusal, WAIT_S)
    pause_s = int(client.log().split("trying again in ")[-1].split(" s")[0])
    assert pause_s >= 300
    assert client.stop() == 0


def test_two_machines_of_one_identity_are_both_told(server: Deployment) -> None:
    place = joined(server, "twin")
    copy = place.with_name("twin-copy")
    shutil.copytree(place, copy)
    one, other = server.start_client(place), server.start_client(copy)
    for client in (one, other):
        wait_for_log(client, "another client named 'tides/twin'", WAIT_S)
    for client in (one, other):
        client.stop()


def retained_presence(server: Deployment) -> set[str]:
    """Who has said that he is here."""
    with Inquiry(server.observer_access, "test") as inquiry:
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
