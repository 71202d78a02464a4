"""From a bare machine to a round, and back: what the commands set up, under a real systemd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services.federation import (
    ROLES,
    a_round_is_made,
    active,
    fedtide,
    models,
    set_up_device,
    set_up_server,
    status,
    unit,
)
from tests.services.machine import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def test_a_server_and_its_device_come_and_go(machine: Machine) -> None:
    said = set_up_server(machine)
    for role in ROLES[:3]:
        assert f"started  {unit(role)}" in said
        assert active(machine, role)
    said = set_up_device(machine)
    assert "joined; the client runs" in said
    assert "0 problems, 0 warnings" in said  # of the doctor, in the client's sandbox
    a_round_is_made(machine)
    assert secrets_that_others_can_read(machine) == ""
    # Mosquitto from 2.0.20 warns of another, and reloads this one as its own user.
    owner = machine.run("stat", "-c", "%U:%G %a", "/etc/fedtide/broker/acl")
    assert owner.strip() == "fedtide-broker:fedtide-broker 600"

    machine.reboot()
    a_round_is_made(machine)

    fedtide(machine, "device", "revoke", "pi-1")
    machine.until(lambda: "revoked" in status(machine, "client"), "the client is shut out")
    machine.run("systemctl", "restart", unit("client"))
    machine.until(lambda: "revoked" in status(machine, "client"), "a new life helps nothing")
    assert machine.show(unit("client"), "NRestarts") == "0"  # it waits, and does not loop
    before = models(machine)

    fedtide(machine, "device", "leave")
    assert machine.show(unit("client"), "LoadState") == "not-found"
    left = ("/etc", "/var", "/run", "/home", "-name", "*fedtide*", "-newer", "/etc/hostname")
    assert "client" not in machine.run("find", *left)
    assert "client" not in machine.run("ls", "/var/lib/fedtide", "/etc/fedtide")
    assert "fedtide:" not in machine.run("cat", "/etc/passwd")
    assert models(machine) == before


def secrets_that_others_can_read(machine: Machine) -> str:
    """Keys and databases whose mode lets anybody but their owner in."""
    names = ("(", "-name", "key*.pem", "-o", "-name", "*.sqlite*", "-o", "-name", "session*", ")")
    return machine.run("find", "/etc/fedtide", "/var/lib/fedtide", *names, "-perm", "/077")
