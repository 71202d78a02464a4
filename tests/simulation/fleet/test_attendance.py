"""When who goes is missed, and a house that is full."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.fleet import Fleet
from fedtide.limits import DEVICES_MAX
from simulator.fleet import attendance, events
from simulator.fleet.attendance import WILL_MS, Attendance
from simulator.fleet.checks import violations
from simulator.fleet.events import Event
from tests.simulation.fleet.fleets import history, of_kind, scenario_of


def visitor(index: int) -> Any:
    return cast(Any, SimpleNamespace(index=index, name=f"d{index}"))


@given(st.integers(1_000, 200_000), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_silence_ends_when_the_production_says_so(
    hello_ms: int, off_ms: int, news_ms: int
) -> None:
    """A fleet that hears every hello until the device is off, and once something else."""
    here, fleet = Attendance(7, hello_ms), Fleet("simulated/7", hello_ms, DEVICES_MAX)
    here.hello(visitor(3), 0)
    heard = {*range(0, off_ms + 1, fleet.hello_ms("d3"))}
    for at_ms in sorted(heard | ({news_ms} if news_ms <= off_ms else set())):
        if at_ms in heard:
            fleet.hello("d3", "", at_ms)
        else:
            fleet.heard("d3", at_ms)
            here.fleet.heard("d3", at_ms)
    missed_at_ms = here.missed_at_ms(visitor(3), off_ms)
    assert missed_at_ms is not None
    assert missed_at_ms <= off_ms + WILL_MS
    assert fleet.silent(missed_at_ms - 1) == []
    assert (missed_at_ms == off_ms + WILL_MS) or fleet.silent(missed_at_ms) == ["d3"]


def test_a_large_fleet_is_missed_by_its_wills() -> None:
    """It says hello too seldom for its silence to be noticed before."""
    here = Attendance(0, 30_000)
    for index in range(1_000):
        assert here.hello(visitor(index), 0)
    assert {here.missed_at_ms(visitor(i), 10_000) for i in range(99)} != {10_000 + WILL_MS}
    for index in range(1_000, 10_000):
        assert here.hello(visitor(index), 0)
    assert {here.missed_at_ms(visitor(i), 10_000) for i in range(99)} == {10_000 + WILL_MS}


def coming_and_going(tmp_path: Path, rows: str, **more: object) -> list[Event]:
    trace = tmp_path / "trace.csv"
    trace.write_text("device,from_s,until_s\n" + rows)
    devices = len(rows.splitlines())
    rounds = {"count": 100, "cohort_size": devices, "devices_min": 1, "collect_ms": 1_000}
    found = history(
        scenario_of(
            {
                "fleet": {"devices": devices},
                "availability": {"kind": "trace", "trace": trace},
                "rounds": rounds,
                "hours_max": 0.1,
                **more,
            }
        )
    )
    assert violations(found) == []
    return found


@pytest.mark.parametrize(("hello_ms", "from_s", "until_s"), [(1_000, 1.5, 5), (30_000, 45, 91)])
def test_who_is_gone_is_missed_the_sooner_the_more_often_it_says_hello(
    tmp_path: Path, hello_ms: int, from_s: float, until_s: float
) -> None:
    found = coming_and_going(tmp_path, "0,0,1000\n1,0,10\n", hello_ms=hello_ms)
    opened = of_kind(events.RoundOpened, found)
    missed_ms = next(o.at_ms for o in opened if o.at_ms > 10_000 and o.online == 1) - 10_000
    assert from_s * 1_000 <= missed_ms <= until_s * 1_000 + 1_500


def test_a_full_house_lets_the_next_one_in_when_another_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance, "DEVICES_MAX", 2)
    rows = "0,0,10\n1,0,1000\n2,1,3\n3,2,1000\n4,3,1000\n"
    found = coming_and_going(tmp_path, rows, hello_ms=1_000)
    assert max(opened.online for opened in of_kind(events.RoundOpened, found)) == 2
    first: dict[int, int] = {}
    for given_ in of_kind(events.TaskGiven, found):
        first.setdefault(given_.device, given_.at_ms)
    assert set(first) == {0, 1, 3}, "2 went before there was a place, 4 came last"
    assert first[3] > 11_500
