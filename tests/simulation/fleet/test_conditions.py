"""Conditions of a fleet: reproducible, independent of each other, with the rates asked for."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtide.plan import Plan
from simulator.device_names import device_name
from simulator.fleet import profiles
from simulator.fleet.availability import FOREVER_MS, Availability
from simulator.fleet.conditions import Conditions
from simulator.fleet.dropouts import PHASES
from simulator.fleet.links import LINKS, transfer_ms
from simulator.fleet.lots import Lots
from simulator.fleet.profiles import MODELS, StepTimes
from simulator.fleet.scenario import (
    AvailabilityConfig,
    LinkNumbers,
    Scenario,
)

ROOT = Path(__file__).parents[3]
HOUR_MS = 3_600_000
RICH: dict[str, Any] = {
    "name": "rich",
    "seed": 5,
    "hours_max": 72.0,
    "fleet": {
        "devices": 2_000,
        "group": [
            {"profile": "pi-4", "share": 0.3, "speed_spread": 0.3},
            {"profile": "phone-fast", "share": 0.5, "link": "4g"},
            {"step_ms": 8, "share": 0.2, "link": "satellite"},
        ],
    },
    "availability": {"kind": "churn", "on_s": 3_600, "off_s": 1_800},
    "dropouts": {
        "before_download": 0.02,
        "in_training": 0.1,
        "before_upload": 0.03,
        "during_upload": 0.05,
        "back_after_s": 600,
    },
    "stragglers": {"kind": "log_normal", "per": "task", "fraction": 0.4, "sigma": 1.0},
    "learning": {"examples": 500, "examples_spread": 0.5},
    "rounds": {"cohort_size": 10},
}


def conditions(**changes: Any) -> Conditions:
    """Of RICH with some keys of its tables changed."""
    raw = {
        key: ({**value, **changes[key]} if isinstance(value, dict) else changes[key])
        if key in changes
        else value
        for key, value in RICH.items()
    }
    return Conditions(msgspec.convert(raw, Scenario))


def draws(of: Conditions, devices: int = 40) -> dict[str, Any]:
    """Everything that is drawn, by component."""
    return {
        "traits": [of.traits(device)[0:3] for device in range(devices)],
        "examples": [of.traits(device).examples for device in range(devices)],
        "presence": [list(islice(of.presence(device), 20)) for device in range(devices)],
        "slow": [of.fate(device, 3).slow_factor for device in range(devices)],
        "dropouts": [of.fate(device, 3).dropout for device in range(devices)],
    }


def test_the_same_scenario_gives_the_same_conditions() -> None:
    assert draws(conditions()) == draws(conditions())
    other = draws(conditions(seed=6))
    assert all(drawn != other[name] for name, drawn in draws(conditions()).items())


def test_nothing_depends_on_the_hash_seed() -> None:
    code = (
        "import json; from tests.simulation.fleet.test_conditions import *;"
        "print(json.dumps(draws(conditions())))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(told.stdout) == json.loads(json.dumps(draws(conditions())))


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"availability": {"on_s": 60}}, {"presence"}),
        ({"availability": {"kind": "day_night"}}, {"presence"}),
        ({"stragglers": {"sigma": 2.0}}, {"slow"}),
        ({"stragglers": {"kind": "none"}}, {"slow"}),
        ({"dropouts": {"in_training": 0.5}}, {"dropouts"}),
        ({"learning": {"examples_spread": 0.1}}, {"examples"}),
        ({"rounds": {"cohort_size": 3}}, set()),
    ],
)
def test_one_component_does_not_move_another(
    changes: dict[str, dict[str, Any]], moved: set[str]
) -> None:
    before, after = draws(conditions()), draws(conditions(**changes))
    assert {name for name, drawn in before.items() if drawn != after[name]} == moved


def test_asking_more_or_in_another_order_changes_nothing() -> None:
    of = conditions()
    first = [of.fate(7, round_id) for round_id in range(50)]
    for device in range(20):
        of.fate(device, 7)
        list(islice(of.presence(device), 5))
    assert [of.fate(7, round_id) for round_id in reversed(range(50))] == first[::-1]


def test_uniform_numbers_are_uniform_and_independent() -> None:
    lots = Lots(1, "test")
    table = np.array([lots.draw(device, number) for device in range(200) for number in range(50)])
    assert 0 < table.min() < table.max() < 1
    assert np.abs(table.mean(axis=0) - 0.5).max() < 4 * math.sqrt(1 / 12 / len(table))
    assert np.abs(table.var(axis=0) - 1 / 12).max() < 0.003
    assert np.abs(np.corrcoef(table.T) - np.eye(4)).max() < 4 / math.sqrt(len(table))


def test_shares_are_exact_and_by_lot() -> None:
    of = conditions()
    names = [of.traits(device).profile for device in range(len(of))]
    assert [names.count(name) for name in ("pi-4", "phone-fast", "8 ms")] == [600, 1000, 400]
    assert 230 < names[:1_000].count("pi-4") < 370


def test_speeds_and_examples_spread_around_their_median() -> None:
    of = conditions()
    pis = [t for t in map(of.traits, range(len(of))) if t.profile == "pi-4"]
    known = MODELS["mnist_2nn"].times
    assert known is not None
    usual = known.scaled(1 / profiles.PROFILES["pi-4"])
    logs = [math.log(pi.times.at(10) / usual.at(10)) for pi in pis]
    assert abs(statistics.fmean(logs)) < 4 * 0.3 / math.sqrt(len(pis))
    assert statistics.stdev(logs) == pytest.approx(0.3, rel=0.12)
    sizes = [math.log(of.traits(device).examples / 500) for device in range(len(of))]
    assert abs(statistics.fmean(sizes)) < 4 * 0.5 / math.sqrt(len(sizes))


def test_dropouts_come_at_their_rates() -> None:
    of, tasks = conditions(), 20_000
    fates = [of.fate(device, round_id) for device in range(200) for round_id in range(100)]
    cuts = [fate.dropout for fate in fates if fate.dropout is not None]
    wanted = dict(zip(PHASES, (0.02, 0.1, 0.03, 0.05), strict=True))
    for phase, rate in wanted.items():
        found = sum(cut.phase == phase for cut in cuts) / tasks
        assert abs(found - rate) < 4 * math.sqrt(rate * (1 - rate) / tasks)
    assert abs(statistics.fmean(cut.fraction for cut in cuts) - 0.5) < 0.02
    pauses = [cut.back_after_ms for cut in cuts if cut.back_after_ms is not None]
    assert len(pauses) == len(cuts)
    assert statistics.fmean(pauses) == pytest.approx(600_000, rel=0.07)


def test_a_cut_in_an_epoch_and_for_good() -> None:
    of = conditions(dropouts={"in_training": 0.9, "at_epoch": 3, "back_after_s": 0})
    dropout = of.fate(4, 9).dropout
    assert dropout is not None
    assert (dropout.epoch, dropout.back_after_ms) == (3, None)


def test_stragglers_by_task_and_by_device() -> None:
    of, tasks = conditions(), 10_000
    factors = [
        of.fate(device, number).slow_factor for device in range(100) for number in range(100)
    ]
    slow = [math.log(factor) for factor in factors if factor != 1]
    assert abs(len(slow) / tasks - 0.4) < 4 * math.sqrt(0.24 / tasks)
    assert abs(statistics.fmean(slow)) < 0.07
    assert statistics.stdev(slow) == pytest.approx(1.0, rel=0.05)
    of = conditions(stragglers={"kind": "factor", "per": "device", "factor": 6})
    kinds = [{of.fate(device, number).slow_factor for number in range(9)} for device in range(900)]
    assert all(len(kind) == 1 for kind in kinds)
    assert abs(kinds.count({6.0}) / 900 - 0.4) < 4 * math.sqrt(0.24 / 900)


def on_at(of: Conditions, at_ms: int) -> int:
    return sum(
        any(start <= at_ms < until for start, until in of.presence(device))
        for device in range(len(of))
    )


def test_churn_is_steady_from_the_start() -> None:
    of = conditions()
    for hour in (0, 1, 30, 71):
        assert abs(on_at(of, hour * HOUR_MS) / 2_000 - 2 / 3) < 4 * math.sqrt(2 / 9 / 2_000)
    lengths = [until - start for d in range(300) for start, until in islice(of.presence(d), 1, 30)]
    assert statistics.fmean(lengths) == pytest.approx(HOUR_MS, rel=0.05)


def test_nights_and_days() -> None:
    night = {"kind": "day_night", "night_share": 0.7, "starts_at_h": 12, "night_spread_s": 3_600}
    of = conditions(availability=night)
    share = 4 * math.sqrt(0.21 / 2_000)
    shares = {hour: on_at(of, hour * HOUR_MS) / 2_000 for hour in (0, 8, 14, 20, 24, 38)}
    assert [shares[hour] for hour in (0, 8, 20, 24)] == [0, 0, 0, 0]  # 12, 20, 8, 12 o'clock
    assert all(abs(shares[hour] - 0.7) < share for hour in (14, 38))  # 2 o'clock
    everywhere = conditions(availability=night | {"zones_h": 24})
    assert abs(on_at(everywhere, 0) / 2_000 - 0.7 / 3) < share
    by_day = conditions(availability=night | {"day_share": 1.0, "night_share": 1.0})
    assert all(len(list(by_day.presence(device))) == 1 for device in range(50))


def test_always() -> None:
    of = conditions(availability={"kind": "always"})
    assert list(of.presence(3)) == [(0, FOREVER_MS)]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["churn", "day_night"]),
    seed=st.integers(0, 2**53 - 1),
    device=st.integers(0, 10**6),
    hours=st.floats(0.1, 200),
    numbers=st.lists(st.floats(0, 24), min_size=4, max_size=4),
    shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
)
def test_intervals_are_in_order_and_end_with_the_scenario(
    kind: Any, seed: int, device: int, hours: float, numbers: list[float], shares: list[float]
) -> None:
    start, begin, length, zones = numbers
    config = AvailabilityConfig(
        kind=kind,
        on_s=60 + begin,
        off_s=60 + length,
        night_share=shares[0],
        day_share=shares[1],
        night_from_h=begin,
        night_until_h=(begin + 1 + length / 2) % 24,
        zones_h=zones,
        starts_at_h=start,
        night_spread_s=start * 3_600,
    )
    availability = Availability(config, seed, devices=1, hours_max=hours)
    found = list(islice(availability.intervals(device), 5_000))
    assert all(0 <= start < until for start, until in found)
    assert all(until < start for (_, until), (start, _) in pairwise(found))
    assert all(start < math.ceil(hours * HOUR_MS) for start, _ in found)


def test_device_names() -> None:
    assert [device_name(device) for device in (0, 7, 123_456)] == [
        "device-00000",
        "device-00007",
        "device-123456",
    ]


def test_the_reference_is_what_was_measured() -> None:
    steps = json.loads((ROOT / "results" / "train_step.json").read_text())["figures"]
    for name, model in MODELS.items():
        if name == "digits" or model.times is None:
            continue
        for size, ms in ((10, model.times.small_ms), (50, model.times.large_ms)):
            measured = steps[f"{name} batch {size} threads 1"]["portable_ms"]
            assert ms == pytest.approx(measured, rel=0.25), "another run of the benchmark"
    digits = profiles.read_benchmark(ROOT / "results" / "digits_step.json")
    known = MODELS["digits"].times
    assert known is not None
    assert digits.small_ms == pytest.approx(known.small_ms, abs=0.001)
    assert digits.large_ms == pytest.approx(known.large_ms, abs=0.001)


def test_profiles_and_links_are_those_of_the_document() -> None:
    document = (ROOT / "docs" / "simulate.md").read_text()
    _, speeds, lines = re.split(r"^## (?:Profiles|Links)$", document, flags=re.MULTILINE)
    table = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", speeds, re.MULTILINE))
    assert {name: float(speed) for name, speed in table.items()} == profiles.PROFILES
    units = {"Gbit/s": 125e6, "Mbit/s": 125e3, "kbit/s": 125.0}
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) (\S+) \| ([\d.]+) (\S+) \| ([\d.]+) ms \|", lines, re.MULTILINE
    )
    assert {name for name, *_ in rows} == set(LINKS)
    for name, down, of_down, up, of_up, latency in rows:
        line = LINKS[name]
        assert line.down_bytes_per_s == pytest.approx(float(down) * units[of_down])
        assert line.up_bytes_per_s == pytest.approx(float(up) * units[of_up])
        assert line.latency_ms == float(latency)


def test_step_times_between_and_beside_the_measured_sizes() -> None:
    times = StepTimes(10, 7.0, 50, 47.0)
    assert [times.at(size) for size in (10, 30, 50, 128)] == [7.0, 27.0, 47.0, 125.0]
    assert times.at(1) == 0.7
    assert StepTimes(10, 0.136, 50, 0.361).at(1) == pytest.approx(0.136 - 9 * 0.005625)
    assert StepTimes(10, 5.0, 10, 5.0).at(4) == 2.0
    assert StepTimes(10, 5.0, 50, 4.0).at(500) == 5.0, "a noisy measurement"


def steps_of(times: StepTimes, plan: Plan, examples: int, slow_factor: float) -> tuple[int, float]:
    """The same, step by step."""
    size = examples if plan.batch_size == "all" else min(plan.batch_size, examples)
    now, steps = 0.0, 0
    for _ in range(plan.epochs):
        for start in range(0, examples, size):
            now += slow_factor * profiles.batch_ms(times, plan, min(size, examples - start))
            steps += 1
            if steps == plan.steps_max or (plan.training_ms_max and now >= plan.training_ms_max):
                return steps, now
    return steps, now


@settings(max_examples=200, deadline=None)
@given(
    examples=st.integers(1, 300),
    batch=st.one_of(st.just("all"), st.integers(1, 80)),
    epochs=st.integers(1, 5),
    steps_max=st.one_of(st.none(), st.integers(1, 40)),
    training_ms_max=st.one_of(st.none(), st.integers(1, 3_000)),
    slow_factor=st.sampled_from([0.25, 1.0, 4.0]),
)
def test_the_time_of_a_training_is_that_of_its_steps(
    examples: int,
    batch: Any,
    epochs: int,
    steps_max: int | None,
    training_ms_max: int | None,
    slow_factor: float,
) -> None:
    plan = Plan(
        epochs=epochs, batch_size=batch, steps_max=steps_max, training_ms_max=training_ms_max
    )
    times = StepTimes(8, 16.0, 16, 40.0)  # exact in binary: no step is on the edge by rounding
    found = profiles.training(times, plan, examples, slow_factor)
    wanted = steps_of(times, plan, examples, slow_factor)
    if batch == "all" and examples > 128:  # in parts, whose sizes are no whole numbers
        assert abs(found.steps - wanted[0]) <= 1
    else:
        assert found[:2] == wanted


def test_transfers() -> None:
    line = LinkNumbers(down_bytes_per_s=1_000_000, up_bytes_per_s=100_000, latency_ms=50)
    assert transfer_ms(line, 500_000, "down") == 600
    assert transfer_ms(line, 500_000, "up") == 5_100
    lossy = msgspec.structs.replace(line, loss=0.01)
    mathis = 1_460 / 0.1 * math.sqrt(1.5) / 0.1
    assert transfer_ms(lossy, 500_000, "down") == pytest.approx(100 + 500_000_000 / mathis)
    near = msgspec.structs.replace(lossy, latency_ms=0)
    assert transfer_ms(near, 500_000, "down") == pytest.approx(500 / 0.99)
    times = [transfer_ms(LINKS[name], 800_000, "up") for name in ("ethernet", "wifi", "4g", "3g")]
    assert times == sorted(times)


def test_a_fleet_of_ten_thousand_takes_little_memory() -> None:
    of = conditions(fleet={"devices": 10_000})
    assert len(of) == 10_000
    assert len({id(of.traits(device).line) for device in range(10_000)}) == 3, "shared"
