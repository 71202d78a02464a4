"""Broker, registrar, coordinator and client as services of a real systemd."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.services.federation import (
    DATA,
    ROLES,
    a_round_is_made,
    active,
    faster,
    fedtide,
    set_up_device,
    set_up_server,
    status,
    unit,
)
from tests.services.machine import ENVIRONMENT, Machine

PYTHON_ROLES = ("registrar", "coordinator", "client")
PROBE = "fedtide-probe.service"
HALT = """
import ctypes, os, sys
ptrace, pid = ctypes.CDLL(None).ptrace, int(sys.argv[1])
for request in (0x4206, 0x4207):  # PTRACE_SEIZE, PTRACE_INTERRUPT
    assert ptrace(request, pid, 0, 0) == 0
while not os.WIFSIGNALED(os.waitpid(pid, 0x40000000)[1]):  # __WALL
    pass
"""
"""A debugger's way to halt one thread of a process: its first one, until all of it ends."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        set_up_server(machine)
        set_up_device(machine)
        machine.run("cp", "-a", "/etc/fedtide", "/etc/fedtide.before")
        for role in ROLES:
            faster(machine, role, RestartSec="1")
        start(machine)
        yield machine


@pytest.fixture(autouse=True)
def everything_works(machine: Machine) -> Iterator[None]:
    """After each test, as before: with the units as they are written."""
    yield
    machine.run("cp", "-a", "/etc/fedtide.before/.", "/etc/fedtide")
    for role in ROLES:
        faster(machine, role, RestartSec="1")
    start(machine)
    a_round_is_made(machine)


def start(machine: Machine) -> None:
    machine.python(f"from fedtide.units import *; start(*{ROLES})")


def restarts(machine: Machine, role: str) -> int:
    return int(machine.show(unit(role), "NRestarts"))


def test_all_are_ready_and_say_what_they_are_at(machine: Machine) -> None:
    assert [machine.show(unit(role), "Type") for role in ROLES] == ["notify"] * 4
    assert all(active(machine, role) for role in ROLES)
    a_round_is_made(machine)
    assert re.match(r"\w+, \d+ of 1000000 rounds done", status(machine, "coordinator"))
    machine.run("systemctl", "stop", unit("coordinator"))
    machine.until(lambda: "or was stopped" in status(machine, "client"), "the client misses it")
    machine.run("systemctl", "stop", unit("broker"))
    machine.until(lambda: "no link" in status(machine, "client"), "the client misses the broker")


@pytest.mark.parametrize("role", ROLES)
def test_what_is_killed_comes_back(machine: Machine, role: str) -> None:
    before = machine.show(unit(role), "MainPID")
    os.kill(machine.host_pid(unit(role)), signal.SIGKILL)
    machine.until(lambda: restarts(machine, role) == 1 and active(machine, role), f"{role} is back")
    assert machine.show(unit(role), "MainPID") != before
    a_round_is_made(machine)


@pytest.mark.parametrize("role", PYTHON_ROLES)
@pytest.mark.parametrize("hang", ["process", "loop"])
def test_what_hangs_is_started_again(machine: Machine, role: str, hang: str) -> None:
    """All of it, or the thread of the loop alone, while the others go on answering the broker."""
    faster(machine, role, RestartSec="1", WatchdogSec="4", TimeoutAbortSec="4")
    machine.run("systemctl", "restart", unit(role))
    a_round_is_made(machine)
    pid = machine.host_pid(unit(role))
    if hang == "process":
        os.kill(pid, signal.SIGSTOP)
    with halted_loop(pid) if hang == "loop" else nullcontext():
        machine.until(lambda: restarts(machine, role) == 1, "the watchdog bites", 60)
    assert "Watchdog timeout" in machine.log(unit(role))
    machine.until(lambda: active(machine, role), f"{role} is back")
    a_round_is_made(machine)


@contextmanager
def halted_loop(pid: int) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", HALT, str(pid)]) as debugger:
        try:
            yield
        finally:
            debugger.kill()


@pytest.mark.parametrize("role", PYTHON_ROLES)
def test_a_live_loop_is_never_taken_for_a_hung_one(machine: Machine, role: str) -> None:
    faster(machine, role, RestartSec="1", WatchdogSec="2")
    machine.run("systemctl", "restart", unit(role))
    a_round_is_made(machine)
    time.sleep(6)
    machine.run("systemctl", "stop", unit("broker"))  # nothing happens at all
    time.sleep(6)
    assert restarts(machine, role) == 0
    assert active(machine, role)


@pytest.mark.parametrize("role", ROLES)
def test_a_wrong_configuration_does_not_loop(machine: Machine, role: str) -> None:
    file = "broker/mosquitto.conf" if role == "broker" else f"{role}.toml"
    machine.run("sed", "-i", "1i misspelt = 1", f"/etc/fedtide/{file}")
    said = machine.python(
        "from fedtide.units import *\n"
        "from fedtide.errors import FedtideError\n"
        f"try: start({role!r})\n"
        "except FedtideError as exc: print(exc)"
    )
    assert f"{unit(role)} does not start" in said
    assert "misspelt" in said
    time.sleep(3)
    assert machine.show(unit(role), "ActiveState") == "failed"
    assert machine.show(unit(role), "ExecMainStatus") == ("3" if role == "broker" else "2")
    assert restarts(machine, role) == 0


def test_missing_data_are_waited_for(machine: Machine) -> None:
    """A disk that is not there yet is no wrong configuration."""
    machine.run("systemctl", "stop", unit("client"))
    machine.run("mv", DATA, f"{DATA}.away")
    machine.run("systemctl", "start", unit("client"), check=False)
    machine.until(lambda: restarts(machine, "client") >= 2, "it tries again")
    machine.run("mv", f"{DATA}.away", DATA)
    machine.until(lambda: active(machine, "client"), "it finds the data")


def test_root_looks_at_data_in_a_closed_home_as_the_service_does(machine: Machine) -> None:
    """And at a bundle where nobody but root gets."""
    a_round_is_made(machine)
    config = "/etc/fedtide/client.toml"
    assert "0 problems" in fedtide(machine, "doctor", config)
    machine.run("chmod", "700", "/root", "/root/bundle")
    check = ("client", "check-data", "--config", config)
    for more in ((), ("--bundle", "/root/bundle")):
        assert "the data fit the model" in fedtide(machine, *check, *more)
    machine.run("mv", DATA, f"{DATA}.away")
    said = [fedtide(machine, *words, check=False) for words in (("doctor", config), check)]
    machine.run("mv", f"{DATA}.away", DATA)
    assert "PROBLEM" in said[0]
    assert "REFUSED" in said[1]
    moved = "/home/pi/other/data.npz"  # and what the service does not see is a problem
    machine.run("cp", "-a", "/home/pi/learning", "/home/pi/other")
    machine.run("sed", "-i", f"s|{DATA}|{moved}|", config)
    assert "REFUSED" in fedtide(machine, *check, check=False)
    machine.write(
        f"/etc/systemd/system/{unit('client')}.d/more.conf",
        "[Service]\nBindReadOnlyPaths=/home/pi/other\n",
    )
    machine.run("systemctl", "daemon-reload")
    assert "the data fit the model" in fedtide(machine, *check)
    machine.run("rm", f"/etc/systemd/system/{unit('client')}.d/more.conf")


def test_the_client_has_no_open_port(machine: Machine) -> None:
    a_round_is_made(machine)
    sockets = machine.run("ss", "--listening", "--tcp", "--udp", "--numeric", "--processes", "-H")
    assert [line for line in sockets.splitlines() if "mosquitto" not in line] == []
    assert {line.split()[4] for line in sockets.splitlines()} == {
        "127.0.0.1:8883",
        "127.0.0.1:8884",
    }


REFUSED = {
    "write what it was given",
    "write in the parent of its folder",
    "write in /etc",
    "read the diary",
    "read the passwords",
    "write the configuration",
    "open a disk",
    "send raw packets",
    "send on the wire",
    "execute what was written",
    "make a set-user-id programme",
    "begin a user namespace",
    "mount",
    "become root",
    "set the clock",
    "trace a process",
    "see others' processes",
    "write kernel settings",
    "write in the control groups",
    "use real-time scheduling",
}


@pytest.mark.parametrize("role", ROLES)
def test_the_sandbox_holds(machine: Machine, role: str) -> None:
    """The unit as it is, with another programme in it."""
    said = json.loads(probed(machine, role, sandboxed=True))
    refused = {name for name, result in said.items() if result != "done"}
    more = {"listen on TCP", "listen on UDP"} if role == "client" else {"read what it was given"}
    assert refused == REFUSED | more, said


def test_the_probe_can_do_all_that_without_the_sandbox(machine: Machine) -> None:
    """Else its attempts would prove nothing."""
    said = json.loads(probed(machine, "client", sandboxed=False))
    refused = {name for name, result in said.items() if result != "done"}
    of_the_container = {"open a disk", "write kernel settings", "set the clock"}
    assert refused <= {*of_the_container, "write in its own folder"}, said  # with its mode


def probed(machine: Machine, role: str, *, sandboxed: bool) -> str:
    machine.write("/opt/probe.py", Path(__file__).with_name("probe.py").read_text())
    if not sandboxed:  # in a folder that nobody needs: it mounts something over it
        machine.run("mkdir", "-p", "/opt/probed")
        command = (f"{ENVIRONMENT}/bin/python", "-I", "/opt/probe.py", "/opt/probed", DATA)
        return machine.run(*command).splitlines()[-1]
    words = f"/opt/probe.py /var/lib/fedtide/{role} {DATA}"
    lines = in_the_unit_of(machine, role, words, Type="oneshot", Restart="no").splitlines()
    return next(line for line in reversed(lines) if line.startswith("{"))


def in_the_unit_of(machine: Machine, role: str, words: str, **settings: str) -> str:
    """What a programme of Python's logs as `fedtide-probe`, whose unit is otherwise the role's."""
    text = machine.run("cat", f"/etc/systemd/system/{unit(role)}")
    command = f"{ENVIRONMENT}/bin/python -I {words}"
    for name, value in {"ExecStart": command, "SyslogIdentifier": "probe", **settings}.items():
        text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
    machine.write(f"/etc/systemd/system/{PROBE}", text)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", PROBE, check=False)
    return machine.log(PROBE)


EAT = """
blocks = []
while True:
    blocks.append(bytearray(b"x" * (1 << 20)))
"""
LIMIT = "from fedtide.memory_limit import available_bytes; print('{', available_bytes())"


def test_who_takes_too_much_memory_is_ended_and_started_again(machine: Machine) -> None:
    machine.write("/opt/eat.py", EAT)
    limits = {"Type": "simple", "RestartSec": "1", "MemoryMax": "100M"}
    in_the_unit_of(machine, "client", "/opt/eat.py", **limits)
    machine.until(lambda: machine.show(PROBE, "NRestarts") >= "2", "it is started again")
    machine.run("systemctl", "stop", PROBE)
    assert "status=9/KILL" in machine.log(PROBE)
    assert active(machine, "client")  # others do not pay for it


def test_a_client_knows_how_much_memory_its_service_may_have(machine: Machine) -> None:
    machine.write("/opt/limit.py", LIMIT)
    settings = {"Type": "oneshot", "Restart": "no", "MemoryMax": "100M"}
    said = in_the_unit_of(machine, "client", "/opt/limit.py", **settings)
    assert f"{{ {100 << 20}" in said


def test_a_reload_of_the_broker_keeps_the_connections(machine: Machine) -> None:
    before = connections(machine)
    assert len(before) == 3
    pid = machine.show(unit("broker"), "MainPID")

    rule = "pattern read anybody"
    machine.run("sh", "-c", f"echo '{rule}' >>/etc/fedtide/broker/acl")

    def lists_read() -> int:  # it warns of such a rule each time
        return machine.log(unit("broker")).count("ACL pattern 'anybody'")

    read = lists_read()
    for _ in range(3):
        machine.run("systemctl", "reload", unit("broker"))
    a_round_is_made(machine)
    assert lists_read() == read + 3
    assert connections(machine) == before
    assert machine.show(unit("broker"), "MainPID") == pid


def connections(machine: Machine) -> set[str]:
    """Ports of the broker's clients."""
    filtered = ("state", "established", "( dport = :8883 or dport = :8884 )")
    lines = machine.run("ss", "--tcp", "--numeric", "-H", *filtered).splitlines()
    return {line.split()[2] for line in lines}


@pytest.mark.parametrize("role", ROLES)
def test_stopping_is_clean_and_quick(machine: Machine, role: str) -> None:
    a_round_is_made(machine)
    begun_s = time.monotonic()
    machine.run("systemctl", "stop", unit(role))
    assert time.monotonic() - begun_s < 10
    assert machine.show(unit(role), "Result") == "success"
    assert machine.show(unit(role), "ActiveState") == "inactive"


def test_a_machine_that_boots_again_goes_on(machine: Machine) -> None:
    machine.reboot()
    assert machine.run("systemctl", "is-system-running") == "running"
    assert all(active(machine, role) for role in ROLES)
    a_round_is_made(machine)


def test_what_is_removed_leaves_nothing(machine: Machine) -> None:
    text = machine.run("cat", f"/etc/systemd/system/{unit('client')}")
    machine.python("from fedtide.units import remove; remove('client')")
    assert "fedtide-client" not in machine.run("find", "/etc/systemd")
    assert machine.show(unit("client"), "LoadState") == "not-found"
    machine.write(f"/etc/systemd/system/{unit('client')}", text)
