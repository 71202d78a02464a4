"""The engine: the ideal case against a formula, what befalls tasks, and what always holds."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cohort import select_cohort
from coordinator.plans import round_plan
from coordinator.round_state import Member, RoundState
from edge_client.config import TrainingConfig
from edge_client.progress import EpochSaver
from fedtide.plan import Plan
from simulator.device_names import device_name
from simulator.fleet import events
from simulator.fleet.activities import Training
from simulator.fleet.checks import violations
from simulator.fleet.closing import why_closed
from simulator.fleet.conditions import Conditions
from simulator.fleet.device import PHASE_NAMES
from simulator.fleet.dropouts import PHASES
from simulator.fleet.engine import run
from simulator.fleet.learning import Part
from simulator.fleet.profiles import Work
from simulator.fleet.record import Header, Recorder
from simulator.fleet.scenario import policies
from simulator.fleet.world import JOB_MS_MIN
from simulator.report.digest import Digest
from simulator.report.tasks import Round, Tasks
from tests.fleet_runs import work_of
from tests.simulation.fleet.fleets import history, of_kind, scenario_of, world_of


class Noted:
    """Learning that writes down what it was asked for."""

    def __init__(self) -> None:
        self.versions: list[tuple[int, list[Part]]] = []

    def advance(self, version: int, parts: Sequence[Part]) -> list[events.Evaluated]:
        self.versions.append((version, list(parts)))
        return [events.Evaluated(0, version - 1, 1.0 / version)]

    def settle(self) -> list[events.Evaluated]:
        return [events.Evaluated(0, self.versions[-1][0], 0.0)]


def test_an_ideal_federation_is_the_synchronous_formula() -> None:
    """Cohorts by lot of all devices, seeds of the round, and the time that it all takes."""
    scenario, learning = scenario_of(), Noted()
    found = history(scenario, learning)
    assert violations(found) == []
    rounds, plan = policies(scenario)[0][1:]
    names = [device_name(index) for index in range(5)]
    for version, parts in learning.versions:
        cohort = select_cohort(names, 3, 1.0, rounds.seed, version)
        assert [device_name(part.device) for part in parts] == list(cohort)
        expected = round_plan(plan, rounds, version, version - 1)
        assert {part.plan for part in parts} == {expected}
        assert {(part.base_version, part.staleness) for part in parts} == {(version - 1, 0)}
        assert {part.steps for part in parts} == {2 * 10}
    assert [version for version, _ in learning.versions] == [1, 2, 3]
    world = world_of(scenario, list.append)
    # A last batch of five examples takes half as long; the first model waits for the bundle.
    trains_ms = 2 * 95
    down_ms, bundle_ms = (world.transfer_ms(0, n, up=False) for n in (4_000, 20_000))
    up_ms = world.transfer_ms(0, 4_000, up=True)
    each_ms = trains_ms + up_ms + JOB_MS_MIN
    made = [event.at_ms for event in of_kind(events.ModelMade, found)]
    assert made == [bundle_ms + turn * (down_ms + each_ms) for turn in (1, 2, 3)]
    quality = of_kind(events.Evaluated, found)
    assert [told.version for told in quality] == [0, 1, 2, 3]
    assert [told.at_ms for told in quality] == [0, *made]


def test_the_bundle_is_downloaded_once_and_a_model_where_a_task_begins_with_it() -> None:
    """Once, also where rounds that are abandoned give devices the same model again."""
    dropouts = {"before_upload": 0.5, "back_after_s": 30.0}
    rounds = {"quorum": 3, "collect_ms": 5_000, "abandoned_max": 50}
    found = history(scenario_of({"dropouts": dropouts, "rounds": rounds}))
    assert violations(found) == []
    tasks = [(e.device, e.version) for e in of_kind(events.TaskGiven, found)]
    assert len(tasks) > len(set(tasks))
    down = [0] * 5
    for ended in of_kind(events.DownloadEnded, found):
        down[ended.device] += ended.size_bytes
    models = [len({version for who, version in tasks if who == device}) for device in range(5)]
    assert down == [20_000 + 4_000 * count for count in models]


def dropping(phase: str, back_after_s: float = 60.0, **more: Any) -> dict[str, object]:
    return {"dropouts": {phase: 1.0, "back_after_s": back_after_s, **more}}


@pytest.mark.parametrize(
    "phase", ["before_download", "in_training", "before_upload", "during_upload"]
)
def test_a_power_cut_costs_time_and_no_work_that_is_safe(phase: str) -> None:
    """Every task is cut short; every device comes back and finishes it."""
    found = history(scenario_of(dropping(phase), {"rounds": {"count": 1, "collect_ms": 3_600_000}}))
    assert violations(found) == []
    assert len(of_kind(events.DroppedOut, found)) == 3
    assert len(of_kind(events.ModelMade, found)) == 1
    began = of_kind(events.TrainingBegan, found)
    assert len(began) == (6 if phase == "in_training" else 3)


def test_tasks_are_cut_short_as_configured_whatever_else_interrupts_them() -> None:
    """Devices come and go while they download, train and upload: a cut waits for its phase."""
    link = {"down_bytes_per_s": 500_000, "up_bytes_per_s": 500_000}
    rates: dict[str, float] = dict.fromkeys(PHASES, 0.1)
    scenario = scenario_of(
        {
            "fleet": {"devices": 40, "group": [{"step_ms": 200.0, "link": link}]},
            "learning": {"parameters": 1_000_000},
            "availability": {"kind": "churn", "on_s": 20.0, "off_s": 5.0},
            "dropouts": {**rates, "back_after_s": 5.0},
            "rounds": {"count": 25, "cohort_size": 20, "quorum": 20, "collect_ms": 3_600_000},
        }
    )
    found, conditions = history(scenario), Conditions(scenario)
    assert violations(found) == []
    drops = [(e.device, e.round_id, e.phase) for e in of_kind(events.DroppedOut, found)]
    done = {(e.device, e.round_id) for e in of_kind(events.UploadEnded, found) if e.whole}
    paused = {e.device for e in of_kind(events.Off, found) if e.why == "away"}
    assert len(paused) == 40
    expected = [
        (device, round_id, PHASE_NAMES[dropout.phase])
        for device, round_id in done
        if (dropout := conditions.fate(device, round_id).dropout) is not None
    ]
    assert sorted(drop for drop in drops if drop[:2] in done) == sorted(expected)
    tasks = len(done)
    assert tasks > 400
    for phase in PHASES:
        share = sum(drop[2] == PHASE_NAMES[phase] for drop in expected) / tasks
        assert abs(share - 0.1) < 4 * math.sqrt(0.09 / tasks)


SLOW = {"fleet": {"group": [{"step_ms": 10_000.0}]}}
"""An epoch takes 95 s: longer than the client would have a power cut cost."""


def test_training_goes_on_from_the_last_finished_epoch() -> None:
    changes = dropping("in_training", at_epoch=2), {"plan": {"epochs": 3}}, SLOW
    found = history(scenario_of(*changes, {"rounds": {"count": 1, "collect_ms": 3_600_000}}))
    assert violations(found) == []
    began = of_kind(events.TrainingBegan, found)
    assert sorted(event.epochs_before for event in began) == [0, 0, 0, 1, 1, 1]
    cut = [event for event in of_kind(events.TrainingEnded, found) if not event.done]
    assert all(event.epochs == 1 and 0 <= event.lost_ms < 95_000 for event in cut)
    began_ms = {
        event.device: event.at_ms for event in began
    }  # the second time: two epochs are left
    done = [event for event in of_kind(events.TrainingEnded, found) if event.done]
    assert {event.at_ms - began_ms[event.device] for event in done} == {190_000}


@given(
    epoch_ms=st.integers(500, 200_000),
    epochs=st.integers(1, 60),
    before=st.integers(0, 59),
    part=st.floats(0, 0.999),
)
def test_epochs_are_saved_as_on_a_device(
    epoch_ms: int, epochs: int, before: int, part: float
) -> None:
    before = min(before, epochs - 1)
    saved, now_s = [0], 0.0

    class Untrained:
        manifest = SimpleNamespace(local=slice(0, 0))

        def parameters(self) -> list[float]:
            return []

    took_ms = part * (epochs - before) * epoch_ms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_client.progress.time.monotonic", lambda: now_s)
        saver = EpochSaver(
            cast(Any, Untrained()),
            epochs,
            TrainingConfig().lost_ms_max,
            lambda progress, *_: saved.append(progress.epochs - before),
        )
        for epoch in range(1, int(took_ms / epoch_ms) + 1):
            now_s = epoch * epoch_ms / 1_000
            saver(cast(Any, SimpleNamespace(epochs=before + epoch, steps=0, loss=0.0)))
    task = SimpleNamespace(plan=Plan(epochs=epochs))
    training = Training(cast(Any, task), Work(10 * epochs, 0.0, epoch_ms, 10), 0, before)
    assert training.epochs_saved(took_ms) == saved[-1]


def test_starts_between_which_blocks_arrive_are_no_loop_of_crashes(tmp_path: Path) -> None:
    """A download that takes five times on, each too short for it, is no reason to decline."""
    rows = "".join(f"0,{100 * turn},{100 * turn + 10}\n" for turn in range(6))
    trace = tmp_path / "trace.csv"
    trace.write_text("device,from_s,until_s\n" + rows)
    link = {"down_bytes_per_s": 100_000, "up_bytes_per_s": 1_000_000}
    scenario = scenario_of(
        {
            "fleet": {"devices": 1, "group": [{"step_ms": 10.0, "link": link}]},
            "learning": {"parameters": 1_200_000},
            "availability": {"kind": "trace", "trace": trace},
            "rounds": {"count": 1, "cohort_size": 1, "devices_min": 1, "collect_ms": 3_600_000},
        }
    )
    found = history(scenario)
    assert violations(found) == []
    assert of_kind(events.Declined, found) == []
    assert len(of_kind(events.ModelMade, found)) == 1


def test_an_upload_goes_on_where_it_broke_off() -> None:
    changes = dropping("during_upload"), {"learning": {"parameters": 1_000_000}}
    found = history(scenario_of(*changes, {"rounds": {"count": 1, "collect_ms": 3_600_000}}))
    assert violations(found) == []
    ended = of_kind(events.UploadEnded, found)
    assert {event.whole for event in ended} == {True, False}
    for device in {event.device for event in ended}:
        assert sum(event.size_bytes for event in ended if event.device == device) == 4_000_000


def test_devices_that_never_come_back_end_the_federation() -> None:
    found = history(scenario_of(dropping("before_upload", 0.0)))
    assert violations(found) == []
    assert isinstance(found[-1], events.Finished)
    assert not found[-1].succeeded


def test_who_is_away_is_missed_after_the_keepalive_and_finishes_when_back(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("device,from_s,until_s\n0,0,0.5\n0,300,2000\n1,0,2000\n")
    scenario = scenario_of(
        {
            "fleet": {"devices": 2},
            "availability": {"kind": "trace", "trace": trace},
            "rounds": {"count": 1, "cohort_size": 2, "devices_min": 2, "collect_ms": 3_600_000},
            "plan": {"epochs": 20},
        }
    )
    found = history(scenario)
    assert violations(found) == []
    [made] = of_kind(events.ModelMade, found)
    assert made.at_ms > 300_000
    assert len([e for e in of_kind(events.TrainingBegan, found) if e.device == 0]) == 2


@pytest.mark.parametrize(
    ("changes", "why", "from_s", "until_s"),
    [
        ({}, "answered", 80, 81),
        ({"availability": {"kind": "always", "trace": None}}, "enough", 19, 21),
        ({"rounds": {"collect_ms": 30_000}}, "deadline", 30, 31),
        ({"rounds": {"mode": "buffered", "buffer_size": 1, "concurrency": 2}}, "enough", 19, 21),
    ],
)
def test_why_a_round_closes(
    tmp_path: Path, changes: dict[str, object], why: str, from_s: int, until_s: int
) -> None:
    """All are here; one has declined, long before the deadline; one is still at work."""
    trace = tmp_path / "trace.csv"
    starts = "".join(f"0,{20 * turn},{20 * turn + 5}\n" for turn in range(9))
    trace.write_text(f"device,from_s,until_s\n{starts}1,0,2000\n")
    scenario = {
        "fleet": {"devices": 2, "group": [{"step_ms": 1_000.0}]},
        "availability": {"kind": "trace", "trace": trace},
        "rounds": {"count": 1, "cohort_size": 2, "devices_min": 2, "collect_ms": 3_600_000},
    }
    found = history(scenario_of(scenario, changes))
    assert violations(found) == []
    closed = of_kind(events.RoundClosed, found)[0]
    assert (closed.why, closed.round_id) == (why, 1)
    assert from_s * 1_000 <= closed.at_ms <= until_s * 1_000
    ended: list[Round] = []
    tasks = Tasks(lambda *_: None, lambda entry, _: ended.append(entry))
    for event in found:
        tasks.observe(event)
    assert ended[0].outcome == why


def test_late_updates_that_are_carried_close_no_round() -> None:
    """They count beside those that came by the deadline."""
    late = Member("device-00001", "accepted", "b", 3, 1)
    in_time = Member("device-00002", "accepted", "a", 4, 2)
    at_work = Member("device-00003", "none", "", 4, 2)
    state = RoundState(phase="aggregating", round_id=4, wanted=2)
    for cohort, why in (
        ((in_time, at_work, late), "deadline"),
        ((in_time, late), "answered"),
        ((in_time, Member("device-00004", "accepted", "c", 4, 2), late), "enough"),
    ):
        assert why_closed(msgspec.structs.replace(state, cohort=cohort)) == why


def test_buffered_rounds_and_late_updates_are_the_machines_own() -> None:
    slow = {"stragglers": {"kind": "factor", "fraction": 0.4, "factor": 20.0}}
    buffered = {"rounds": {"mode": "buffered", "buffer_size": 2, "concurrency": 4, "count": 12}}
    found = history(scenario_of(slow, buffered))
    assert violations(found) == []
    assert any(
        part.staleness for closed in of_kind(events.RoundClosed, found) for part in closed.parts
    )
    for closed in of_kind(events.RoundClosed, found):
        for part in closed.parts:
            assert part.weight == 95 / math.sqrt(1 + part.staleness)
    late = {"late": "discount", "collect_ms": 500, "count": 40, "devices_min": 3}
    found = history(scenario_of(slow, {"rounds": late, "fleet": {"devices": 9}}))
    assert violations(found) == []
    assert "late" in {v.name for v in of_kind(events.Verdict, found) if v.verdict == "accepted"}


def test_less_work_for_slow_devices() -> None:
    learning = Noted()
    slow = {"stragglers": {"kind": "factor", "fraction": 0.4, "factor": 20.0}}
    found = history(scenario_of(slow, {"plan": {"training_ms_max": 300}}), learning)
    assert violations(found) == []
    steps = {part.steps for _, parts in learning.versions for part in parts}
    assert max(steps) == 20
    assert 1 <= min(steps) < 4


SCENARIOS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "availability": st.sampled_from(
            [
                {"kind": "always"},
                {"kind": "churn", "on_s": 2.0, "off_s": 1.0},
                {"kind": "churn", "on_s": 300.0, "off_s": 100.0},
            ]
        ),
        "dropouts": st.fixed_dictionaries(
            {
                "before_download": st.sampled_from([0.0, 0.2]),
                "in_training": st.sampled_from([0.0, 0.2]),
                "before_upload": st.sampled_from([0.0, 0.2]),
                "during_upload": st.sampled_from([0.0, 0.2]),
                "back_after_s": st.sampled_from([0.0, 0.1, 30.0]),
            }
        ),
        "stragglers": st.sampled_from([{}, {"kind": "log_normal", "sigma": 2.0}]),
        "rounds": st.fixed_dictionaries(
            {
                "mode": st.sampled_from(["synchronous", "buffered"]),
                "late": st.sampled_from(["discard", "discount"]),
                "collect_ms": st.sampled_from([300, 5_000]),
                "over_selection": st.sampled_from([1.0, 1.5]),
                "quorum": st.sampled_from([1, 2]),
                "devices_min": st.just(2),
                "buffer_size": st.just(2),
                "concurrency": st.just(4),
                "abandoned_max": st.just(5),
            }
        ),
        "plan": st.fixed_dictionaries({"epochs": st.sampled_from([1, 3])}),
        "hours_max": st.just(2.0),
    }
)


@settings(max_examples=60, deadline=None)
@given(SCENARIOS)
def test_what_always_holds(changes: dict[str, object]) -> None:
    """Whatever befalls whom: every check, counted and wasted work make the whole, same again."""
    scenario = scenario_of(changes)
    found = history(scenario)
    assert violations(found) == []
    digest = Digest(scenario.fleet.devices, late_counts=scenario.rounds.late_counts)
    for event in found:
        digest.observe(event)
    digest.end(found[-1].at_ms)
    work = digest.work()
    assert (work.spent_ms, work.counted_ms) == work_of(found)
    assert sum(work.wasted_ms.values()) == work.spent_ms - work.counted_ms
    assert min(work.counted_ms, *work.wasted_ms.values()) >= 0
    assert history(scenario) == found


def digest_of(seed: int) -> str:
    scenario = scenario_of({"seed": seed, "availability": {"kind": "churn", "on_s": 2.0}})
    header = Header({}, seed, "x", 5, 3, "modelled", 1, 1, "0")
    with Recorder(None, header) as recorder:
        run(world_of(scenario, recorder.write), 1.0)
    return recorder.digest


def test_the_digest_is_of_the_scenario_and_its_seed() -> None:
    assert digest_of(1) == digest_of(1) != digest_of(2)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        (lambda e: [x for x in e if not isinstance(x, events.Off)], "it was on"),
        (lambda e: [x for x in e if not isinstance(x, events.Invited)], "nobody asked"),
        (lambda e: [x for x in e if not isinstance(x, events.TrainingEnded)], "was training"),
        (lambda e: [x for x in e if not isinstance(x, events.UploadEnded)], "has not arrived"),
        (lambda e: [y for x in e for y in (x,) * (1 + isinstance(x, events.Verdict))], "second"),
        (lambda e: [x for x in e if not isinstance(x, events.RoundClosed)], "did not close"),
        (lambda e: [*e, events.On(0, 4)], "comes after"),
        (lambda e: [*e[:-1], events.Off(9**9, 1, "away"), events.TaskGiven(9**9, 1, 1, 0)], "off"),
    ],
)
def test_each_check_notices_a_planted_bug(planted: Any, said: str) -> None:
    found = history(scenario_of(dropping("in_training")))
    assert violations(found) == []
    assert any(said in text for text in violations(planted(found)))
