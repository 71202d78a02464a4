"""Damaged state files: it starts and goes on, or ends with a message; never a double count."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.processes import Child
from fedtide.failpoints import VARIABLE
from fedtide.messages import Hello
from tests.faults.checker import check_store
from tests.faults.conftest import Record
from tests.faults.federation import KILLED, FaultFederation

pytestmark = pytest.mark.slow

GOES_ON_S = 30.0


def truncate(path: Path, _earlier: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path, _earlier: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path, _earlier: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def zero_both(path: Path, earlier: Path) -> None:
    """Both generations of it."""
    for index in "01":
        zero(path.with_suffix(f".{index}"), earlier)


def swap(path: Path, earlier: Path) -> None:
    """The same file as it was some rounds ago; one that did not exist is removed."""
    if earlier.exists():
        shutil.copyfile(earlier, path)
    else:
        path.unlink()


def remove(path: Path, _earlier: Path) -> None:
    path.unlink()


Damage = Callable[[Path, Path], None]
DAMAGES: tuple[Damage, ...] = (truncate, zero, flip, swap, remove)


class Patient:
    """One process whose files are damaged between a kill and the next start."""

    def __init__(self, federation: FaultFederation, child: Child, die_at: str) -> None:
        self.federation = federation
        self.child = child
        self.folder = federation.local.folder / child.name
        self._die_at = die_at
        self._earlier = federation.folder / "earlier"
        self._backup = federation.folder / "backup"
        self.outcomes: dict[str, str] = {}
        self.federation.rounds_more(1)
        self._copy(self._earlier)
        self.federation.rounds_more(2)

    def _copy(self, to: Path) -> None:
        self.child.stop()
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        self.child.start()

    def kill(self) -> None:
        """It dies at its step, in the middle of a round."""
        self.child.stop()
        self.child.start(**{VARIABLE: f"{self._die_at}=kill"})
        self.federation.wait_until(
            lambda: self.child.exit_code() is not None, f"{self.child.name} at {self._die_at}"
        )
        assert self.child.exit_code() == KILLED
        self.child.kill()

    def try_with(self, path: Path, damage: Damage) -> None:
        """Damage this file and start it; where that ends it, the state comes from a backup."""
        shutil.rmtree(self._backup, ignore_errors=True)
        shutil.copytree(self.folder, self._backup)
        damage(path, self._earlier / path.relative_to(self.folder))
        name = path.relative_to(self.folder)
        shown = name.name[:12] if name.parent.name == "blobs" else name.name
        what = f"{damage.__name__} {name.parent / shown}"
        seen = self.child.log_path.stat().st_size
        version = self.federation.status().model_version
        heard = len(self.federation.observer.heard)
        self.child.start()
        self.federation.wait_until(
            lambda: self.child.exit_code() is not None or self._goes_on(version, heard),
            f"{self.child.name} after {what}",
            GOES_ON_S,
        )
        said = self.child.log_path.read_text(errors="replace")[seen:]
        assert "Traceback" not in said, f"{what}:\n{said}"
        code = self.child.exit_code()
        if code is None:
            self.outcomes[what] = "went on"
            return
        assert code in (3, 7), f"{what}: {code}\n{said}"
        assert "fedtide: error:" in said
        assert "hint:" in said, said
        self.outcomes[what] = said[said.index("fedtide: error:") :].splitlines()[0][:200]
        self.child.kill()
        shutil.rmtree(self.folder)
        shutil.copytree(self._backup, self.folder)

    def _goes_on(self, version: int, heard: int) -> bool:
        """Two more models than before, with it; a restored store may have gone back."""
        said = self.federation.observer.heard[heard:]
        alive = any(isinstance(h.body, Hello) for h in said)
        newest = self.federation.status().model_version
        return alive and newest != version and newest >= version + 2


def files_of(folder: Path) -> list[Path]:
    """Every state file now; of the blobs that are alike, some."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    blobs = [path for path in files if path.parent.name == "blobs"]
    return [path for path in files if path not in blobs] + blobs


def examine(patient: Patient, chosen: Callable[[Path], bool] = lambda _: True) -> dict[str, Any]:
    """Damage every file that there is at the first kill, in every way."""
    patient.kill()
    names = [p.relative_to(patient.folder) for p in files_of(patient.folder) if chosen(p)]
    patient.child.start()
    for name in names:
        for damage in DAMAGES:
            patient.kill()
            path = patient.folder / name
            if path.exists() and path.stat().st_size:
                patient.try_with(path, damage)
            if patient.child.process_id is None:
                patient.child.start()
    return {"faults": len(patient.outcomes), "outcomes": patient.outcomes}


def test_every_file_of_a_device_damaged(tmp_path: Path, record: Record) -> None:
    with FaultFederation(tmp_path, devices=("alpha",)) as federation:
        federation.local.start()
        patient = Patient(federation, federation.devices["alpha"], "client: update stored")
        patient.kill()
        patient.try_with(patient.folder / "session.0", zero_both)
        outcomes = examine(patient)
        record({**federation.finish(), **outcomes})


def test_every_file_of_the_coordinator_damaged(tmp_path: Path, record: Record) -> None:
    """What was lost with a file is lost; nothing is counted twice, and no model is wrong."""
    with FaultFederation(tmp_path, devices=("alpha",)) as federation:
        federation.local.start()
        patient = Patient(federation, federation.coordinator, "coordinator: verdict committed")
        blobs = sorted((patient.folder / "blobs").iterdir(), key=lambda p: p.stat().st_mtime_ns)
        some = {blobs[0], blobs[1], blobs[-1], blobs[-2], blobs[-3]}

        def chosen(path: Path) -> bool:
            return path.parent.name != "blobs" or path in some

        outcomes = examine(patient, chosen)
        federation.rounds_more(2)
        federation.coordinator.stop()
        findings = [line for line in check_store(federation.store) if "not on disk" not in line]
        assert not findings, findings
        record(outcomes)
