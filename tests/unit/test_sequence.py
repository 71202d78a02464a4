"""The numbers of seals never go back: over restarts, with a wrong clock, and without one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtide.errors import StateError
from fedtide.sequence import BEHIND_MS_MAX, RESERVED, Sequence

NOW_MS = 1_795_000_000_000


class Clock:
    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    written: list[int] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        written.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    return written


def test_it_begins_with_the_clock_and_counts(tmp_path: Path) -> None:
    sequence = Sequence(tmp_path, Clock())
    assert [sequence.take() for _ in range(3)] == [NOW_MS, NOW_MS + 1, NOW_MS + 2]


def test_a_thousand_numbers_cost_one_write(tmp_path: Path, writes: list[int]) -> None:
    sequence = Sequence(tmp_path, Clock())
    sequence.take()
    writes.clear()
    for _ in range(RESERVED - 1):
        sequence.take()
    assert writes == []
    sequence.take()
    assert len(writes) <= 2  # the file, and its folder where it is new


def test_a_restart_goes_on_above_and_skips_a_second_at_most(tmp_path: Path) -> None:
    clock = Clock()
    last = [Sequence(tmp_path, clock).take() for _ in range(100)][-1]
    assert last <= NOW_MS + 100 * RESERVED
    clock.now_ms = last + 5_000_000
    assert Sequence(tmp_path, clock).take() == clock.now_ms


def test_a_pi_that_boots_in_1970_goes_on_where_it_was(tmp_path: Path) -> None:
    last = Sequence(tmp_path, Clock()).take()
    without_clock = Sequence(tmp_path, Clock(12_000))
    assert without_clock.take() > last
    assert without_clock.take() == last + RESERVED + 1


def test_of_two_copies_the_one_that_began_last_is_ahead(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "card").mkdir()
    before = Sequence(tmp_path / "card", clock).take()
    shutil.copytree(tmp_path / "card", tmp_path / "copy")
    clock.now_ms += 2_000
    copy = Sequence(tmp_path / "copy", clock)
    heard = [copy.take() for _ in range(100)]
    assert heard[0] > before
    clock.now_ms += 2_000
    assert Sequence(tmp_path / "card", clock).take() > heard[-1]


def test_a_lost_file_is_made_good_by_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    last = Sequence(tmp_path, clock).take()
    for path in tmp_path.iterdir():
        path.unlink()
    clock.now_ms += 1_000
    assert Sequence(tmp_path, clock).take() > last


def test_a_damaged_file_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    for _ in range(2):
        last = Sequence(tmp_path, clock).take()
    for path in tmp_path.iterdir():
        path.write_bytes(b"rot")
    clock.now_ms += 1_000_000
    assert Sequence(tmp_path, clock).take() > last
    assert "the clock says where to go on" in caplog.text


def test_a_clock_that_comes_right_is_followed(tmp_path: Path) -> None:
    clock = Clock(1_000)
    sequence = Sequence(tmp_path, clock)
    assert sequence.take() == 1_000
    clock.now_ms = NOW_MS
    assert sequence.take() == NOW_MS


def test_an_idle_device_writes_once_a_day(tmp_path: Path, writes: list[int]) -> None:
    clock = Clock()
    sequence = Sequence(tmp_path, clock)
    sequence.take()
    sequence = Sequence(tmp_path, clock)
    sequence.take()
    writes.clear()
    for _ in range(24 * 60):  # a hello a minute, for a day
        clock.now_ms += 60_000
        sequence.take()
    assert len(writes) <= 1


def test_without_a_reservation_there_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = Sequence(tmp_path, Clock())

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateError):
            sequence.take()
    assert sequence.take() == NOW_MS


@given(st.lists(st.tuples(st.integers(0, 2 * NOW_MS), st.integers(0, 3), st.booleans())))
def test_whatever_clock_and_restarts_do_it_never_goes_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("sequence")
    clock, last = Clock(), 0
    sequence = Sequence(folder, clock)
    for now_ms, count, restart in steps:
        clock.now_ms = now_ms
        if restart:
            sequence = Sequence(folder, clock)
        for _ in range(count):
            number = sequence.take()
            assert number > last
            last = number


def test_the_drift_allowed_is_longer_than_what_a_restart_skips() -> None:
    assert BEHIND_MS_MAX > RESERVED
