"""How often the local data have been trained on, on disk: a restart does not begin to count anew.

A device may have no clock that runs without power. So what is saved is how long ago each training
began, and what both of the machine's clocks said then: its uptime counts while it has not been
restarted; else what the wall clock says has passed, if it was set and has not gone back.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from edge_client.data import NotNowError
from edge_client.data.config import DataConfig
from edge_client.waits import duration
from fedtide.errors import StateError
from fedtide.files import make_folder, read_checked, write_atomically
from fedtide.messages import Task

FILE_NAME = "data_use"
DAY_MS = 86_400_000
_SET_MS = 1_767_225_600_000
"""2026-01-01: a clock that says less has not been set."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


class Now(NamedTuple):
    """What the clocks say."""

    boot: str
    """Of this start of the machine."""
    up_ms: int
    wall_ms: int


class _Use(Struct, frozen=True, forbid_unknown_fields=True):
    task: str
    age_ms: int


class _Saved(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    boot: str
    up_ms: int
    wall_ms: int
    uses: tuple[_Use, ...]


def now() -> Now:
    """Of this machine."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = ""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Now(boot, time.clock_gettime_ns(clock) // 10**6, time.time_ns() // 10**6)


class DataUse:
    """The file `FOLDER/data_use`; without limits there is none."""

    def __init__(self, config: DataConfig, folder: Path) -> None:
        self._per_day, self._again_ms = config.rounds_per_day_max, config.again_after_ms
        self._path = folder / FILE_NAME

    def admit(self, task: Task, at: Now) -> None:
        """Count this training, if it has not been counted before, or refuse it.

        Raises:
            NotNowError: the data have been used as often as they may, or it cannot be counted.
            StateError: the disk is failing.
        """
        if self._per_day is None and self._again_ms is None:
            return
        name = f"{task.run_id}/{task.round_id}"
        longest_ms = max(DAY_MS, self._again_ms or 0)
        uses = [use for use in self._uses(at) if use.age_ms < longest_ms]
        if any(use.task == name for use in uses):
            return
        wait_ms = self._wait_ms([use.age_ms for use in uses])
        if wait_ms:
            raise NotNowError(
                "the local data have been used as often as this device lets them; "
                f"again in {duration(wait_ms + 999)}"
            )
        self._save((*uses, _Use(name, 0)), at)

    def _wait_ms(self, ages_ms: list[int]) -> int:
        """Until the next training may begin."""
        waits = [0]
        if self._again_ms is not None and ages_ms:
            waits.append(self._again_ms - min(ages_ms))
        today = sorted(age for age in ages_ms if age < DAY_MS)
        if self._per_day is not None and len(today) >= self._per_day:
            waits.append(DAY_MS - today[self._per_day - 1])
        return max(waits)

    def _uses(self, at: Now) -> list[_Use]:
        """Every use that is known, as old as it is now."""
        try:
            saved = msgspec.json.decode(read_checked(self._path), type=_Saved)
        except FileNotFoundError:
            return []
        except (msgspec.DecodeError, UnicodeDecodeError):
            _log.warning("%s is damaged: the data count as used up just now", self._path)
            used_up = (_Use("", 0),) * (self._per_day or 1)
            self._save(used_up, at)
            return list(used_up)
        passed_ms = 0
        if saved.boot == at.boot and at.boot:
            passed_ms = at.up_ms - saved.up_ms
        else:
            passed_ms = at.up_ms  # at least: it was off before
            if saved.wall_ms >= _SET_MS:
                passed_ms = max(passed_ms, at.wall_ms - saved.wall_ms)
        passed_ms = max(0, passed_ms)
        return [msgspec.structs.replace(use, age_ms=use.age_ms + passed_ms) for use in saved.uses]

    def _save(self, uses: tuple[_Use, ...], at: Now) -> None:
        saved = _Saved(1, at.boot, at.up_ms, at.wall_ms, uses)
        try:
            make_folder(self._path.parent)
            write_atomically(self._path, msgspec.json.encode(saved))
        except StateError as exc:
            if not exc.no_room:
                raise
            raise NotNowError(
                "the disk is full: the use of the local data cannot be counted"
            ) from exc
