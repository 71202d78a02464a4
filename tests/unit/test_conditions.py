"""The judge of a device's conditions: what holds up what, in which words, and until when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, cast

import msgspec
import pytest

from edge_client import condition_watch
from edge_client.condition_watch import ConditionWatch
from edge_client.conditions import (
    FREQUENCY_CAPPED,
    RETELL_MS,
    SETTLE_MS,
    SOFT_LIMIT,
    UNDER_VOLTAGE,
    ConditionsConfig,
    Link,
    Readings,
    Verdict,
    examine,
    judge,
)
from edge_client.hours import Moment, is_open, opening, parse_window
from edge_client.sensors import Sensors
from edge_client.session_events import ConditionsJudged
from edge_client.session_state import ALL_HOLD
from fedtide.config import convert_config
from fedtide.errors import ConfigError

NOON = Moment(2, 12 * 60)
WELL = Readings(
    power="mains",
    temperature_c=48.2,
    throttled=0,
    load=0.1,
    memory_mb=2_000,
    disk_mb=9_000,
    link=Link("eth0", False),
    time=NOON,
)
EVERYTHING = ConditionsConfig(
    mains=True,
    battery_percent_min=40,
    temperature_c_max=70,
    throttled="wait",
    load_max=0.5,
    memory_mb_min=300,
    disk_mb_min=1_000,
    metered="wait",
    hours=("08:00-18:00",),
)


def config(**keys: Any) -> ConditionsConfig:
    return convert_config(keys, ConditionsConfig, "client.toml")


def reason(readings: Readings, **keys: Any) -> str:
    """Why a device waits, at first sight."""
    verdict = judge(readings, config(**keys), Verdict(), 0)
    return "; ".join(filter(None, (verdict.training, verdict.transfers)))


def now(**changes: Any) -> Readings:
    return msgspec.structs.replace(WELL, **changes)


def test_a_machine_that_is_well_waits_for_nothing() -> None:
    assert judge(WELL, EVERYTHING, Verdict(), 0) == Verdict({})
    assert [condition.met for condition in examine(WELL, EVERYTHING)] == [True] * 9


def test_where_nothing_is_asked_for_nothing_waits_but_for_a_firmware_in_need() -> None:
    assert judge(Readings(), ConditionsConfig(), Verdict(), 0) == Verdict({})
    assert reason(now(throttled=UNDER_VOLTAGE)).startswith("the supply's voltage is too low, ")
    assert reason(now(throttled=UNDER_VOLTAGE), throttled="ignore") == ""


@pytest.mark.parametrize(
    ("readings", "keys", "expected"),
    [
        (now(power="battery"), {"mains": True}, "on battery, trains again on mains"),
        (
            now(power="battery", battery_percent=34.4),
            {"battery_percent_min": 40},
            "battery at 34%, trains again at 40% or on mains",
        ),
        (now(power="battery", battery_percent=40), {"battery_percent_min": 40}, ""),
        (now(power="mains", battery_percent=3), {"battery_percent_min": 40}, ""),
        (now(temperature_c=70.0), {"temperature_c_max": 70}, ""),
        (
            now(temperature_c=71.3),
            {"temperature_c_max": 70},
            "71 °C, trains again below 65 °C",
        ),
        (
            now(temperature_c=71.3),
            {"temperature_c_max": 70, "temperature_c_resume": 50},
            "71 °C, trains again below 50 °C",
        ),
        (
            now(throttled=UNDER_VOLTAGE | FREQUENCY_CAPPED | 0x50000),
            {},
            "the supply's voltage is too low and the processor's frequency is capped, "
            "trains again when the firmware reports none of this",
        ),
        (now(throttled=0xF0000), {}, ""),
        (now(throttled=SOFT_LIMIT), {}, ""),
        (
            now(load=0.834),
            {"load_max": 0.5},
            "others use 83% of the processors, trains again at 50%",
        ),
        (
            now(memory_mb=180),
            {"memory_mb_min": 300},
            "180 MB of memory available, trains again with 300 MB",
        ),
        (
            now(disk_mb=90),
            {"disk_mb_min": 500},
            "90 MB of disk space free, trains again with 500 MB",
        ),
        (
            now(link=Link("wwan0", True)),
            {"metered": "wait"},
            "the link over wwan0 is metered, fetches and sends again over another link",
        ),
        (now(link=Link("wwan0", True)), {"metered": "use"}, ""),
        (now(link=Link("", None)), {"metered": "wait"}, ""),
        (
            now(),
            {"hours": ["22:00-06:00"]},
            "outside of its hours, trains again at 22:00",
        ),
        (
            now(),
            {"hours": ["sat,sun 10:00-24:00"]},
            "outside of its hours, trains again at 10:00 on sat",
        ),
        (now(), {"hours": ["22:00-06:00", "11:00-13:00"]}, ""),
    ],
)
def test_why_a_device_waits(readings: Readings, keys: dict[str, Any], expected: str) -> None:
    assert reason(readings, **keys) == expected


@pytest.mark.parametrize("condition", [c.key for c in examine(WELL, EVERYTHING)])
def test_what_cannot_be_read_is_not_met_and_named(condition: str) -> None:
    """And nothing else is: who asked for a protection does not train without it."""
    held = judge(Readings(), EVERYTHING, Verdict(), 0).held
    assert held[condition].text.startswith(f"conditions.{condition} cannot be judged: ")
    if condition == "hours":
        assert held[condition].text == "conditions.hours cannot be judged: the clock is not set"


def test_only_a_metered_link_keeps_from_fetching_and_sending() -> None:
    verdict = judge(Readings(), EVERYTHING, Verdict(), 0)
    assert verdict.transfers.startswith("conditions.metered cannot be judged: ")
    assert "metered" not in verdict.training
    assert verdict.training.count("cannot be judged") == 8


def test_a_battery_whose_charge_nobody_knows() -> None:
    asked = {"battery_percent_min": 40}
    assert "the battery's charge is unknown" in reason(now(power="battery"), **asked)
    assert reason(now(power="mains"), **asked) == ""


def test_it_cools_beyond_a_margin_and_for_a_while() -> None:
    asked = config(temperature_c_max=70)
    verdict, told = Verdict(), []
    for at_s, degrees in enumerate([69, 71, 69, 66, 64.9, 66, 64] + [60] * 61):
        verdict = judge(now(temperature_c=degrees), asked, verdict, at_s * 1_000)
        told.append(verdict.training)
    waits = [at_s for at_s, text in enumerate(told) if text]
    assert waits == list(range(1, 6 + SETTLE_MS // 1_000)), "from 71 °C to a minute below 65 °C"


def test_the_hours_are_exact() -> None:
    asked = config(hours=["12:00-13:00"])
    before = judge(now(time=Moment(0, 719)), asked, Verdict(), 0)
    assert before.training == "outside of its hours, trains again at 12:00"
    assert judge(now(time=Moment(0, 720)), asked, before, 1_000) == Verdict({})


def test_the_text_follows_the_readings_once_a_minute_only() -> None:
    """Each change of it is a retained message to everybody."""
    asked = config(temperature_c_max=70)
    verdict, texts = Verdict(), []
    for at_ms in range(0, 5 * RETELL_MS, 5_000):
        verdict = judge(now(temperature_c=75 + at_ms / 10_000), asked, verdict, at_ms)
        texts.append(verdict.training)
    assert len(set(texts)) == 5


# ---- hours ----


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("08:00-18:00", [(0, 480), (6, 1079)], [(0, 479), (0, 1080)]),
        ("22:00-06:00", [(0, 1320), (1, 0), (1, 359)], [(1, 360), (1, 1319)]),
        ("fri 22:00-06:00", [(4, 1320), (5, 359)], [(4, 100), (5, 1320), (5, 360)]),
        ("sun 22:00-06:00", [(6, 1439), (0, 0)], [(6, 0), (1, 0)]),
        ("sat,sun 00:00-24:00", [(5, 0), (6, 1439)], [(4, 1439), (0, 0)]),
        ("fri-mon 10:00-11:00", [(4, 600), (0, 600)], [(1, 600), (3, 600)]),
        ("00:00-24:00", [(0, 0), (6, 1439)], []),
    ],
)
def test_windows(text: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]) -> None:
    windows = [parse_window(text)]
    assert all(is_open(windows, Moment(*at)) for at in inside)
    assert not any(is_open(windows, Moment(*at)) for at in outside)


def test_when_it_opens() -> None:
    windows = [parse_window("fri 22:00-06:00"), parse_window("mon,wed 07:30-08:00")]
    assert opening(windows, Moment(0, 400)) == "07:30"
    assert opening(windows, Moment(0, 460)) == "07:30 on wed"
    assert opening(windows, Moment(3, 1_400)) == "22:00"
    assert opening(windows, Moment(5, 400)) == "07:30 on mon"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"hours": ["22-6"]}, "conditions: hours has '22-6', expected such as '22:00-06:00'"),
        ({"hours": []}, "conditions.hours is []: expected"),
        ({"hours": ["24:00-06:00"]}, "hours has '24:00-06:00'"),
        ({"hours": ["06:00-24:01"]}, "hours has"),
        ({"hours": ["06:60-07:00"]}, "hours has"),
        ({"hours": ["06:00-06:00"]}, "hours has"),
        ({"hours": ["son 06:00-07:00"]}, "days of mon, tue"),
        ({"hours": ["mon- 06:00-07:00x"]}, "hours has"),
        ({"hours": "06:00-07:00"}, "hours"),
        ({"temperature_c_resume": 60.0}, "temperature_c_resume is 60, expected"),
        ({"temperature_c_max": 60.0, "temperature_c_resume": 61.0}, "temperature_c_resume is 61"),
        ({"temperature_c_max": float("nan")}, "temperature_c_max is nan"),
        ({"load_max": 1.5}, "conditions.load_max is 1.5: expected a number, at most 1"),
        ({"battery_percent_min": 0}, "expected a whole number, at least 1"),
        ({"throttled": "no"}, "expected 'auto' or 'wait' or 'ignore'"),
        ({"metred": "wait"}, "did you mean 'metered'?"),
    ],
)
def test_what_no_condition_is(keys: dict[str, Any], said: str) -> None:
    class File(msgspec.Struct):
        conditions: ConditionsConfig

    with pytest.raises(ConfigError) as caught:
        convert_config({"conditions": keys}, File, "client.toml")
    assert said in str(caught.value)
    assert "conditions" in str(caught.value)


# ---- the watch ----


class Machine:
    """Sensors that say what a test wants."""

    def __init__(self, *readings: Readings | Exception) -> None:
        self.readings = list(readings)

    def throttled(self) -> int | None:
        return WELL.throttled

    def read(self) -> Readings:
        found = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[ConditionsJudged]]]:
    """What the watch reports of such readings, one after the other; the first is what it begins
    with."""
    monkeypatch.setattr(condition_watch, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(condition_watch, "LOOK_S", 0.001)
    watches: list[ConditionWatch] = []

    def watch(
        asked: ConditionsConfig, count: int, *readings: Readings | Exception
    ) -> list[ConditionsJudged]:
        reports: SimpleQueue[ConditionsJudged] = SimpleQueue()
        machine = cast(Sensors, Machine(*readings))
        watches.append(ConditionWatch(asked, machine, reports.put))
        watches[-1].start()
        return [watches[-1].first, *(reports.get(timeout=10) for _ in range(count))]

    yield watch
    for one in watches:
        one.stop()


def test_the_watch_tells_what_changes(told: Callable[..., list[ConditionsJudged]]) -> None:
    hours = config(hours=["12:00-13:00"])
    morning, noon = now(time=Moment(0, 719)), now(time=Moment(0, 720))
    first, early, later = told(hours, 2, morning, morning, noon)
    assert first.training == first.transfers == "its conditions are being looked at"
    assert early == ConditionsJudged("outside of its hours, trains again at 12:00", "")
    assert later == ALL_HOLD


def test_where_there_is_nothing_to_look_at_nobody_looks(
    told: Callable[..., list[ConditionsJudged]],
) -> None:
    before = threading.active_count()
    assert told(config(throttled="ignore"), 0, WELL) == [ALL_HOLD]
    assert threading.active_count() == before


def test_a_bug_of_the_watch_trains_nothing(
    told: Callable[..., list[ConditionsJudged]], caplog: pytest.LogCaptureFixture
) -> None:
    found = told(EVERYTHING, 2, RuntimeError("boom"), WELL)
    assert found[1].training == "its conditions cannot be judged: its own log says more"
    assert found[2] == ALL_HOLD
    assert "boom" in caplog.text


def test_what_cannot_be_judged_is_in_the_log(
    told: Callable[..., list[ConditionsJudged]], caplog: pytest.LogCaptureFixture
) -> None:
    told(EVERYTHING, 1, now(temperature_c=None), WELL)
    assert (
        "conditions.temperature_c_max cannot be judged: no temperature can be read: tasks wait"
        in caplog.text
    )
