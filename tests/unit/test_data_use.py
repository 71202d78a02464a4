"""How often local data may be used, on machines that restart and whose clocks are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.data import NotNowError
from edge_client.data.config import DataConfig
from edge_client.data.usage import DAY_MS, DataUse, Now, now
from fedtide.errors import StateError
from tests.property.test_session_machine import task_of

HOUR_MS = 3_600_000
WALL_MS = 1_800_000_000_000


class Machine:
    """Its clocks, and a device with limits on it."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.at = Now("first", 1000, WALL_MS)
        self.folder = folder
        self.config = DataConfig(folder / "d.npz", **limits)  # type: ignore[arg-type]

    def passes(self, ms: int) -> None:
        self.at = Now(self.at.boot, self.at.up_ms + ms, self.at.wall_ms + ms)

    def restarts(self, *, off_ms: int, wall_ms: int | None = None) -> None:
        wall_ms = self.at.wall_ms + off_ms if wall_ms is None else wall_ms
        self.at = Now(self.at.boot + "again", 0, wall_ms)

    def use(self, round_id: int) -> bool:
        try:
            DataUse(self.config, self.folder).admit(task_of(round_id), self.at)
        except NotNowError:
            return False
        return True


def test_so_often_a_day_whatever_restarts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rounds_per_day_max=2)
    assert machine.use(1)
    machine.passes(HOUR_MS)
    assert machine.use(2)
    assert machine.use(2), "the same task, after a restart of the client"
    assert not machine.use(3)
    machine.restarts(off_ms=HOUR_MS)
    assert not machine.use(3)
    machine.passes(22 * HOUR_MS)
    assert machine.use(3), "a day after the first"
    assert not machine.use(4)
    machine.passes(HOUR_MS)
    assert machine.use(4)


def test_a_pause_between_two(tmp_path: Path) -> None:
    machine = Machine(tmp_path, again_after_ms=3 * DAY_MS)
    assert machine.use(1)
    with pytest.raises(NotNowError, match="again in 3 days"):
        DataUse(machine.config, tmp_path).admit(task_of(2), machine.at)
    machine.passes(2 * DAY_MS)
    assert not machine.use(2)
    machine.passes(DAY_MS)
    assert machine.use(2)


def test_without_a_clock_only_the_time_that_is_sure_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rounds_per_day_max=1)
    machine.at = Now("first", 0, 5_000)  # 1970
    assert machine.use(1)
    machine.restarts(off_ms=0, wall_ms=WALL_MS)  # set: 57 years seem to have passed
    assert not machine.use(2)
    machine.passes(DAY_MS)
    assert machine.use(2)
    machine.restarts(off_ms=0, wall_ms=WALL_MS - DAY_MS)  # set back
    assert not machine.use(3)
    machine.passes(DAY_MS)
    assert machine.use(3)


def test_without_limits_nothing_is_written(tmp_path: Path) -> None:
    assert Machine(tmp_path).use(1)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_count_is_taken_for_used_up(tmp_path: Path) -> None:
    machine = Machine(tmp_path, rounds_per_day_max=2)
    (tmp_path / "data_use").write_bytes(b"\xff{")
    assert not machine.use(1)
    machine.passes(DAY_MS)
    assert machine.use(1)


@pytest.mark.parametrize("no_room", [True, False])
def test_what_cannot_be_counted_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room: bool
) -> None:
    def full(*_: object) -> None:
        raise StateError("full", no_room=no_room)

    monkeypatch.setattr("edge_client.data.usage.write_atomically", full)
    use = DataUse(DataConfig(tmp_path / "d", rounds_per_day_max=1), tmp_path)
    with pytest.raises(NotNowError if no_room else StateError):
        use.admit(task_of(1), now())


def test_the_clocks_of_this_machine() -> None:
    first, second = now(), now()
    assert first.boot == second.boot
    assert first.up_ms <= second.up_ms
