"""A server and a device on one machine, set up by the commands that set them up anywhere."""

from __future__ import annotations

import re
from pathlib import Path

from tests.bundles import build
from tests.services.machine import ENVIRONMENT, Machine

ROLES = ("broker", "registrar", "coordinator", "client")
DATA = "/home/pi/learning/data.npz"
_MAKE_DATA = """
import numpy, sys
rng = numpy.random.default_rng(1)
x = rng.normal(size=(40, 8)).astype(numpy.float32)
numpy.savez(sys.argv[1], x=x, y=(x[:, 0] > 0).astype(numpy.int64))
"""


def fedtide(machine: Machine, *words: str, check: bool = True) -> str:
    """What the command prints, run by root."""
    return machine.run(f"{ENVIRONMENT}/bin/fedtide", *words, check=check)


def set_up_server(machine: Machine) -> str:
    """What `server init` says; rounds never end."""
    machine.copy(build("tiny_mlp"), "/root/bundle")
    where = ("localhost", "--bind", "127.0.0.1", "--federation", "pond")
    said = fedtide(machine, "server", "init", *where, "--bundle", "/root/bundle")
    machine.run("sed", "-i", "s/^count = 100 /count = 1000000 /", "/etc/fedtide/coordinator.toml")
    machine.run("systemctl", "restart", unit("coordinator"))
    return said


def set_up_device(machine: Machine, name: str = "pi-1") -> str:
    """What `device join` says. Its data are in a home that nobody else may look into."""
    machine.run("useradd", "--create-home", "pi", check=False)
    machine.run("install", "-d", "-o", "pi", str(Path(DATA).parent))
    machine.python(_MAKE_DATA, DATA)
    machine.write("/home/pi/diary.txt", "private")
    machine.run("chmod", "700", "/home/pi")
    code = re.search(r"fedtide-join-1\.\S+", fedtide(machine, "device", "add", name))
    assert code
    return fedtide(machine, "device", "join", code[0], "--data", DATA)


def faster(machine: Machine, role: str, **settings: str) -> None:
    """Settings of the unit for a test, beside its own."""
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    machine.write(f"/etc/systemd/system/{unit(role)}.d/test.conf", f"[Service]\n{lines}")
    machine.run("systemctl", "daemon-reload")


def unit(role: str) -> str:
    """Its name."""
    return f"fedtide-{role}.service"


def active(machine: Machine, role: str) -> bool:
    """Whether it has said that it is ready, and runs."""
    return machine.show(unit(role), "ActiveState") == "active"


def status(machine: Machine, role: str) -> str:
    """What it is at, in its own words."""
    return machine.show(unit(role), "StatusText")


def a_round_is_made(machine: Machine) -> None:
    """Broker, coordinator and client take part in it."""
    before = models(machine)
    machine.until(lambda: models(machine) > before, "a new model")


def models(machine: Machine) -> int:
    """How many were made, as the coordinator tells systemd."""
    found = re.search(r"(\d+) of \d+ rounds done", status(machine, "coordinator"))
    return int(found[1]) if found else 0
