"""Disks that are full or failing: a clear message, nothing lost, and on it goes with room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.processes import Child
from fedtide.failpoints import VARIABLE
from tests.faults.conftest import Record
from tests.faults.federation import FaultFederation

pytestmark = pytest.mark.slow

STATE_ERROR = 7
WRITES = (("disk: write", "ENOSPC"), ("disk: sync", "EIO"), ("disk: rename", "ENOSPC"))
COMMITS = (("disk: commit", "ENOSPC"),)
ROOM_KB = (0, 4, 12, 24, 48, 80, 120, 180)
"""Free space, from nothing to nearly a round's worth."""


def ended_well(child: Child, told: str, seen: int) -> None:
    """It ended with the code of a state error, said what and what to do, and no traceback."""
    assert child.exit_code() == STATE_ERROR, child.log_tail()
    said = child.log_path.read_text()[seen:]
    assert "fedtide: error:" in said, said
    assert told in said, said
    assert "Traceback" not in said, said


def ended_or_made(federation: FaultFederation, child: Child, models: int, what: str) -> bool:
    """Wait until it has ended or so many more models are made; whether it has ended."""
    goal = federation.status().model_version + models
    federation.wait_until(
        lambda: child.exit_code() is not None or federation.status().model_version >= goal, what
    )
    return child.exit_code() is not None and federation.status().model_version < goal


def sweep_step(federation: FaultFederation, child: Child, step: str, error: str) -> int:
    """Fail at the first, second ... time until two rounds pass without it; how often it failed."""
    times = 0
    while True:
        child.stop()
        seen = child.log_path.stat().st_size if child.log_path.exists() else 0
        child.start(**{VARIABLE: f"{step}={error}@{times + 1}"})
        if not ended_or_made(federation, child, 2, f"{child.name} at {step} {times + 1}"):
            child.stop()
            child.start()
            return times
        ended_well(child, os.strerror(getattr(errno, error)), seen)
        times += 1


def run(folder: Path, record: Record, name: str, steps: tuple[tuple[str, str], ...]) -> None:
    # A single device: no round passes without its disk.
    with FaultFederation(folder, devices=("alpha",), rounds={"collect_ms": 60_000}) as federation:
        federation.local.start()
        federation.rounds_more(1)
        child = federation.coordinator if name == "coordinator" else federation.devices[name]
        failures = {step: sweep_step(federation, child, step, error) for step, error in steps}
        assert all(failures.values()), failures
        record({**federation.finish(), "faults": sum(failures.values()), "failures": failures})


def test_a_device_whose_disk_fails_at_any_write(tmp_path: Path, record: Record) -> None:
    run(tmp_path, record, "alpha", WRITES)


def test_a_coordinator_whose_disk_fails_at_any_write(tmp_path: Path, record: Record) -> None:
    run(tmp_path, record, "coordinator", (*WRITES, *COMMITS))


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[None]:
    """A real one, which takes this much and no more."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs"]
    if os.geteuid() != 0 or subprocess.run(["mount", *options, folder], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def leave_free(filler: Path, room_kb: int) -> None:
    """Fill the disk up to this much."""
    filler.unlink(missing_ok=True)
    with filler.open("wb", buffering=0) as file:
        while True:
            status = os.statvfs(filler.parent)
            free_kb = status.f_bavail * status.f_frsize // 1024
            if free_kb <= room_kb:
                return
            file.write(b"\0" * 1024 * min(64, free_kb - room_kb))


@pytest.mark.parametrize("name", ["coordinator", "alpha"])
def test_a_disk_that_is_really_full(tmp_path: Path, record: Record, name: str) -> None:
    """Filled in the middle of rounds up to a little room; SQLite's commits included."""
    disk = tmp_path / "run" / name
    with small_disk(disk, 8_000):
        full = 0
        with FaultFederation(tmp_path, devices=("alpha",)) as federation:
            federation.local.start()
            federation.rounds_more(1)
            child = federation.coordinator if name == "coordinator" else federation.devices[name]
            for room_kb in ROOM_KB:
                seen = child.log_path.stat().st_size
                leave_free(disk / "filler", room_kb)
                for models in (5, 2):  # when it has ended: the same again, or it fits after all
                    if not ended_or_made(federation, child, models, f"{name}, {room_kb} KB"):
                        break
                    full += 1
                    ended_well(child, "", seen)
                    child.kill()
                    seen = child.log_path.stat().st_size
                    child.start()
                (disk / "filler").unlink()
                child.stop()
                child.start()
                federation.rounds_more(1)
            assert full
            record({**federation.finish(), "faults": full})
