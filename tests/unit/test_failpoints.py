"""Named steps: each is in the code, and an armed one acts at its time and only then."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtide import failpoints
from fedtide.errors import ConfigError, StateError
from fedtide.failpoints import STEPS, VARIABLE, Step, arm_from_environment, listen, parse, reach
from fedtide.files import write_atomically
from fedtide.launch import module_command, module_environment

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    listen(None)


def test_every_step_is_marked_somewhere() -> None:
    marked = set()
    for package in ("fedtide", "edge_client", "coordinator"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "failpoints.py":
                for call in re.findall(r"reach\(.*", path.read_text()):
                    marked |= set(re.findall(r'"([a-z]+: [a-z ]+)"', call))
    assert marked == set(STEPS)


def test_nothing_happens_unless_somebody_listens() -> None:
    reach("disk: write")
    heard: list[Step] = []
    listen(heard.append)
    reach("disk: write")
    listen(None)
    reach("disk: write")
    assert heard == ["disk: write"]


@pytest.mark.parametrize(
    "text",
    ["disk: write", "disk: write=kil", "disk=kill", "disk: write=kill@0", "disk: write=kill@x"],
)
def test_what_is_no_step_or_action_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse(text)


def test_an_errno_is_raised_at_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "disk: sync=ENOSPC@2; disk: rename=EIO@3+")
    arm_from_environment()
    path = tmp_path / "file"
    write_atomically(path, b"1")
    with pytest.raises(StateError, match="No space left"):
        write_atomically(path, b"2")
    write_atomically(path, b"3")
    for _ in range(2):
        with pytest.raises(StateError, match="failpoint 'disk: rename'"):
            write_atomically(path, b"4")
    assert path.read_bytes() == b"3"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "arming", [f"disk: write={errno.errorcode[errno.EIO]}", "disk: write=kill"]
)
def test_a_command_is_armed_by_its_environment(arming: str, tmp_path: Path) -> None:
    program = "from pathlib import Path\nfrom fedtide import cli, failpoints, files\n"
    program += "failpoints.arm_from_environment()\n"
    program += f"files.write_atomically(Path({str(tmp_path / 'x')!r}), b'')"
    command = [*module_command("fedtide")[:2], "-c", program]
    done = subprocess.run(
        command, env=module_environment(**{VARIABLE: arming}), capture_output=True, check=False
    )
    killed = arming.endswith("kill")
    assert done.returncode == (-signal.SIGKILL if killed else 1), done.stderr
    assert (os.strerror(errno.EIO).encode() in done.stderr) != killed
    wrong = subprocess.run(
        module_command("fedtide", "--version"),
        env=module_environment(**{VARIABLE: "nonsense"}),
        capture_output=True,
        check=False,
    )
    assert wrong.returncode == ConfigError.exit_code
    assert b"Traceback" not in wrong.stderr


def test_the_listener_is_off_by_default() -> None:
    assert failpoints._listener is None
