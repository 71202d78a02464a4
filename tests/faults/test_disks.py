"""Disks that are full or failing: a clear message, nothing lost, and on it goes with room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from demo.brokers import COORDINATOR
from fedtide.failpoints import VARIABLE
from tests.faults.conftest import Record
from tests.faults.federation import FaultFederation

pytestmark = pytest.mark.slow

STATE_ERROR = 7
WRITES = (("disk: write", "ENOSPC"), ("disk: sync", "EIO"), ("disk: rename", "ENOSPC"))
COMMITS = (("disk: commit", "ENOSPC"),)
ROOM_KB = (0, 4, 12, 24, 48, 80, 120, 180)
"""Free space, from nothing to nearly a round's worth."""
WAITING = ("the disk is full", "trying again", "fetching goes on in")
"""What a device says that waits for room."""


Outcome = Literal["ended", "waits", "made"]


class Patient:
    """The process whose disk fails, and what became of it."""

    def __init__(self, federation: FaultFederation, name: str) -> None:
        self._federation = federation
        self.child = federation.coordinator if name == COORDINATOR else federation.devices[name]
        self._seen = 0
        self.counts: Counter[str] = Counter()

    def said(self) -> str:
        """By this life."""
        return self.child.log_path.read_text(errors="replace")[self._seen :]

    def start(self, **environment: str) -> None:
        """A new life."""
        self.child.stop()
        self._seen = self.child.log_path.stat().st_size
        self.child.start(**environment)

    def outcome(self, what: str, models: int = 2) -> Outcome:
        """It ends with a message, or waits for room and says so, or makes so many models more."""
        goal = self._federation.status().model_version + models
        told = self._seen + len(self.said())
        found: list[Outcome] = []

        def over() -> bool:
            if self._federation.status().model_version >= goal:
                found.append("made")
            elif self.child.exit_code() is not None:
                found.append("ended")
            elif any(word in self.said()[told - self._seen :] for word in WAITING):
                found.append("waits")
            return bool(found)

        self._federation.wait_until(over, f"{self.child.name} {what}")
        if found[0] == "ended":
            assert self.child.exit_code() == STATE_ERROR, self.said()
            assert "fedtide: error:" in self.said()
            self.child.kill()
        assert "Traceback" not in self.said(), self.said()
        self.counts[found[0]] += 1
        return found[0]


def sweep_step(federation: FaultFederation, name: str, step: str, error: str) -> Counter[str]:
    """Fail at the first, second ... time until rounds pass without it; what came of each."""
    patient = Patient(federation, name)
    times = 1
    while True:
        patient.start(**{VARIABLE: f"{step}={error}@{times}"})
        outcome = patient.outcome(f"at {step} {times}")
        if outcome == "waits":
            federation.rounds_more(1)
        elif outcome == "made" and "failpoint" not in patient.said():
            patient.start()
            return patient.counts
        if outcome == "ended":
            assert os.strerror(getattr(errno, error)) in patient.said()
        times += 1


def run(folder: Path, record: Record, name: str, steps: tuple[tuple[str, str], ...]) -> None:
    # A single device: no round passes without its disk.
    with FaultFederation(folder, devices=("alpha",), rounds={"collect_ms": 60_000}) as federation:
        federation.local.start()
        federation.rounds_more(1)
        counts = {step: sweep_step(federation, name, step, error) for step, error in steps}
        faults = sum(count for step in counts.values() for count in step.values()) - len(counts)
        assert all(step["ended"] + step["waits"] for step in counts.values()), counts
        record({**federation.finish(), "faults": faults, "outcomes": counts})


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
    with small_disk(disk, 8_000), FaultFederation(tmp_path, devices=("alpha",)) as federation:
        federation.local.start()
        federation.rounds_more(1)
        patient = Patient(federation, name)
        for room_kb in ROOM_KB:
            leave_free(disk / "filler", room_kb)
            if patient.outcome(f"with {room_kb} KB", models=5) == "ended":
                patient.start()  # the same again, or it fits after all
                patient.outcome(f"again with {room_kb} KB")
            (disk / "filler").unlink()
            if patient.child.process_id is None:
                patient.start()
            federation.rounds_more(1)
        assert patient.counts["ended"] + patient.counts["waits"]
        outcomes = dict(patient.counts)
        record({**federation.finish(), "faults": len(ROOM_KB), "outcomes": outcomes})
