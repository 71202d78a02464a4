"""The judge of conditions over whole days of readings: hours, margins, and that nothing flaps."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client import conditions
from edge_client.conditions import SETTLE_MS, ConditionsConfig, Link, Readings, Verdict, judge
from edge_client.hours import DAY, DAYS, WEEK, Moment, is_open, opening, parse_window

HOT_C, COOL_C = 70.0, 65.0
ASKED = ConditionsConfig(
    mains=True,
    temperature_c_max=HOT_C,
    temperature_c_resume=COOL_C,
    load_max=0.5,
    memory_mb_min=300,
    disk_mb_min=300,
    metered="wait",
    metered_interfaces=(),
)
maybe_c = st.none() | st.floats(-300, 3_000)
readings = st.builds(
    Readings,
    power=st.sampled_from(["mains", "battery", None]),
    temperature_c=maybe_c | st.floats(COOL_C - 2, HOT_C + 2),
    throttled=st.none() | st.integers(0, 2**32),
    load=st.none() | st.floats(0, 1),
    memory_mb=st.none() | st.integers(0, 600),
    disk_mb=st.none() | st.integers(0, 600),
    link=st.none() | st.builds(Link, st.sampled_from(["", "eth0"]), st.none() | st.booleans()),
)
looks = st.lists(st.tuples(readings, st.integers(0, SETTLE_MS)), max_size=40)
texts = st.builds(
    "{} {:02}:{:02}-{:02}:{:02}".format,
    st.lists(st.sampled_from(DAYS), min_size=1).map(",".join),
    st.integers(0, 23),
    st.integers(0, 59),
    st.integers(0, 23),
    st.integers(0, 59),
).filter(lambda text: text[-11:-6] != text[-5:])


def after(found: list[tuple[Readings, int]]) -> list[tuple[int, Readings, Verdict]]:
    """Time, readings and verdict of each look."""
    verdict, at_ms, told = Verdict(), 0, []
    for now, pause_ms in found:
        at_ms += pause_ms
        verdict = judge(now, ASKED, verdict, at_ms)
        told.append((at_ms, now, verdict))
    return told


def check(found: list[tuple[Readings, int]]) -> None:
    held_at_ms: dict[str, int] = {}
    """When each condition was last seen not to be met."""
    for at_ms, now, verdict in after(found):
        unmet = {condition.key for condition in conditions.examine(now, ASKED) if not condition.met}
        assert unmet <= set(verdict.held), "what is not met holds up at once"
        degrees = now.temperature_c
        if (
            degrees is None
            or degrees > HOT_C
            or (degrees >= COOL_C and "temperature_c_max" in held_at_ms)
        ):
            unmet.add("temperature_c_max")
        held_at_ms |= dict.fromkeys(unmet, at_ms)
        for key, last_at_ms in list(held_at_ms.items()):
            if key not in verdict.held:
                assert at_ms - last_at_ms >= SETTLE_MS, f"{key} flaps"
                del held_at_ms[key]
        assert set(verdict.held) <= set(held_at_ms), "nothing else is held up"


@given(looks)
def test_nothing_flaps_and_nothing_that_is_not_met_goes_on(
    found: list[tuple[Readings, int]],
) -> None:
    check(found)


@given(looks, readings)
def test_what_is_well_for_long_goes_on(found: list[tuple[Readings, int]], last: Readings) -> None:
    well = Readings("mains", None, 20.0, 0, 0.0, 500, 500, Link("eth0", False), None)
    *_, (_, _, verdict) = after([*found, (last, 5), (well, 0), (well, SETTLE_MS)])
    assert verdict == Verdict({})


@pytest.mark.parametrize("margin", ["no margin", "no while"])
def test_the_checker_notices_a_judge_that_flaps(
    margin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if margin == "no while":
        monkeypatch.setattr(conditions, "SETTLE_MS", 0)
    else:
        honest = conditions.examine
        monkeypatch.setattr(conditions, "examine", lambda now, asked, _held=(): honest(now, asked))
    well = Readings("mains", None, 20.0, 0, 0.0, 500, 500, Link("eth0", False), None)
    hot, warm = (msgspec.structs.replace(well, temperature_c=c) for c in (HOT_C + 1, HOT_C - 1))
    with pytest.raises(AssertionError, match="flaps"):
        check([(hot, 0), (well, 5_000), (warm, SETTLE_MS), (hot, 0), (warm, 0), (warm, SETTLE_MS)])


# ---- hours ----


def open_minutes(text: str) -> set[int]:
    """Of the week, counted one by one."""
    days, hours = text.split(" ")
    start, end = (int(at[:2]) * 60 + int(at[3:]) for at in hours.split("-"))
    length = (end - start) % DAY
    return {
        (DAYS.index(day) * DAY + start + minute) % WEEK
        for day in days.split(",")
        for minute in range(length)
    }


@given(st.lists(texts, min_size=1, max_size=3), st.integers(0, WEEK - 1))
def test_hours_are_open_in_exactly_these_minutes(found: list[str], at: int) -> None:
    windows = [parse_window(text) for text in found]
    minutes = set().union(*map(open_minutes, found))
    now = Moment(*divmod(at, DAY))
    assert is_open(windows, now) == (at in minutes)
    if at not in minutes:
        wait = next(wait for wait in range(WEEK) if (at + wait) % WEEK in minutes)
        day, minute = divmod((at + wait) % WEEK, DAY)
        said = f"{minute // 60:02}:{minute % 60:02}"
        assert opening(windows, now) == (said if wait < DAY else f"{said} on {DAYS[day]}")
