"""Updates of the client under a true systemd: it comes up, it does not, the installer is killed.

The client is a stand-in that tells systemd that it is ready, so that a minute is enough.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.containers import Container, make_userland, missing_tools
from coordinator.packaging.run_file import make_run_file
from tests.offline_files import MACHINE, make_client

pytestmark = pytest.mark.slow
PYTHON = "3.13"
"""Of the container's Debian."""
UNIT = """\
[Service]
Type=notify
ExecStart=/opt/fedtide/current/bin/python -I -m fedtide client
Restart=always
RestartSec=1
User=nobody
ProtectSystem=strict
"""
CLIENT = """
import os, socket, sys, time
if "client" in sys.argv:
    if "{version}" == "3.0":
        sys.exit("this version has a bug")
    if "{version}" == "4.0":
        time.sleep(1000)
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.connect(os.environ["NOTIFY_SOCKET"].replace("@", chr(0)))
    ear.send(b"READY=1")
    time.sleep(100000)
print("fedtide {version}")
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A machine whose service runs version 1.0."""
    if os.geteuid() != 0 or missing_tools():
        pytest.skip(f"needs root, and {' '.join(missing_tools()) or 'nothing else'}")
    make_userland()
    folder = tmp_path_factory.mktemp("files")
    with Container("device") as machine:
        for version in ("1.0", "2.0", "3.0", "4.0"):
            client = make_client(version, main=CLIENT.replace("{version}", version))
            content, _ = make_run_file(version, MACHINE, {PYTHON: [client]})
            path = folder / f"{version}.run"
            path.write_bytes(content)
            machine.give(path, path.name)
        unit = folder / "fedtide-client.service"
        unit.write_text(UNIT)
        machine.run("sh 1.0.run")
        machine.give(unit, unit.name)
        machine.run("mv fedtide-client.service /etc/systemd/system; systemctl daemon-reload")
        machine.run("systemctl start fedtide-client")
        yield machine


def running(device: Container) -> str:
    """The version whose Python the service runs, however it was named."""
    pid = device.run("systemctl show --value -p MainPID fedtide-client").strip()
    words = device.run(f"tr '\\0' ' ' </proc/{pid}/cmdline").split()
    folder = device.run(f"readlink -f {Path(words[0]).parent.parent}").strip()
    return Path(folder).name[:3]


def test_a_version_that_comes_up_is_the_one_that_runs(device: Container) -> None:
    device.run("sh 2.0.run")
    assert running(device) == "2.0"
    assert "2.0" in device.run("fedtide")
    # It goes on when the drop-in is gone, and after a restart.
    assert "trial" not in device.run("systemctl cat fedtide-client")
    device.run("systemctl restart fedtide-client")
    assert running(device) == "2.0"
    assert "fedtide-trial" not in device.run("systemctl list-timers --all")


@pytest.mark.parametrize(("version", "why"), [("3.0", "has a bug"), ("4.0", "not within 3 s")])
def test_a_version_that_does_not_come_up_is_taken_back(
    version: str, why: str, device: Container
) -> None:
    device.run("sh 2.0.run")
    said = device.run(f"sh {version}.run --come-up-s 3 || echo ended with $?")
    assert why in said
    assert "ended with 8" in said
    assert running(device) == "2.0"
    assert device.run("systemctl is-active fedtide-client").strip() == "active"
    assert "2.0" in device.run("fedtide")


def test_an_installer_that_is_killed_in_the_trial_is_undone_by_the_timer(
    device: Container,
) -> None:
    device.run("sh 2.0.run")
    # The service waits for version 4.0 to come up; the installer is killed meanwhile.
    device.run("(sh 4.0.run --come-up-s 20 & echo $! >pid) >/dev/null 2>&1 </dev/null")
    until(
        device, "[ -e /run/systemd/system/fedtide-client.service.d/trial.conf ] && echo yes", "yes"
    )
    device.run("kill -9 $(cat pid)")
    assert "fedtide-trial.timer" in device.run("systemctl list-units --all")
    device.run("systemctl start --no-block fedtide-trial.service")  # its time has come
    until(device, "systemctl is-active fedtide-client || true", "active")
    assert running(device) == "2.0"
    until(device, "systemctl is-active fedtide-trial.service", "inactive")
    device.run("sh 2.0.run")
    device.run("/opt/fedtide/uninstall")
    assert device.run("ls /opt").strip() == ""
    assert "is off; to have it run" in device.run("sh 2.0.run")
    device.run("systemctl enable --now fedtide-client")
    assert "is off" not in device.run("sh 2.0.run")
    assert running(device) == "2.0"


def until(device: Container, command: str, said: str) -> None:
    deadline_s = time.monotonic() + 60
    while device.run(f"{command} || true").strip() != said:
        assert time.monotonic() < deadline_s, device.run("journalctl -n 50 --no-pager")
        time.sleep(0.2)
