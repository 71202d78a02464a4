"""Figures of simulated runs, against small runs that are computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.fleet import events as e
from simulator.fleet.record import Header, Record
from simulator.report import rounds_to_target, summarise, write_summary
from simulator.report.curves import crossing, running_best
from simulator.report.fairness import gini, jain
from simulator.report.figures import common_target
from simulator.report.summary import RoundFigures, Summary
from simulator.report.tasks import Task
from simulator.report.timeline import DEVICES_MOST, sample, timeline, window
from simulator.report.words import bytes_words, share_words, time_words
from tests.fleet_runs import header, profiles_of, random_run, record_of, work_of

# --- the paper's metric


def test_the_target_is_crossed_on_a_straight_line() -> None:
    assert rounds_to_target([(1, 0.5), (2, 0.9), (3, 0.95)], 0.8) == pytest.approx(1.75)


def test_a_dip_before_the_crossing_does_not_steepen_it() -> None:
    """The running best before round 3 is 0.8 of round 1, not the 0.2 of round 2."""
    curve = [(1, 0.8), (2, 0.2), (3, 1.0)]
    assert running_best(curve) == [(1, 0.8), (2, 0.8), (3, 1.0)]
    assert rounds_to_target(curve, 0.9) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        ([], 0.5, None),
        ([(1, 0.4)], 0.5, None),
        ([(3, 0.6), (4, 0.7)], 0.5, 3),
        ([(1, 0.4), (5, 0.5)], 0.5, 5),
        ([(1, 0.4), (2, math.nan), (3, 0.6)], 0.5, 2),
    ],
)
def test_the_edges_of_a_curve(
    curve: list[tuple[float, float]], target: float, expected: float | None
) -> None:
    assert rounds_to_target(curve, target) == (expected and pytest.approx(expected))


def test_a_curve_that_goes_back_is_refused() -> None:
    with pytest.raises(ValueError, match="goes back from 3 to 2"):
        rounds_to_target([(3, 0.1), (2, 0.2)], 0.5)


accuracies = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(accuracies, st.floats(0.01, 1))
def test_a_crossing_lies_between_the_rounds_around_it(values: list[float], target: float) -> None:
    found = crossing(list(enumerate(values, 1)), target)
    first = next((i for i, value in enumerate(values, 1) if value >= target), None)
    if first is None:
        assert found is None
    else:
        assert found is not None
        assert max(1, first - 1) <= found <= first


# --- fairness


def test_gini_and_jain_by_hand() -> None:
    counts = np.array([1, 0, 3, 0])
    # Mean absolute difference of all 16 ordered pairs: 2 * (1+2+1 + 3+0 + 3) / 16, over 2 * mean 1.
    assert gini(counts) == pytest.approx(20 / 16 / 2)
    assert jain(counts) == pytest.approx(16 / (4 * 10))
    assert (gini(np.array([2, 2, 2])), jain(np.array([2, 2, 2]))) == pytest.approx((0, 1))
    assert (gini(np.zeros(3, np.int64)), jain(np.zeros(3, np.int64))) == (None, None)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_gini_is_half_the_relative_mean_difference(values: list[int]) -> None:
    counts = np.array(values)
    if counts.sum():
        difference = np.abs(counts[:, None] - counts[None, :]).mean()
        assert gini(counts) == pytest.approx(difference / 2 / counts.mean(), abs=1e-12)
        index = jain(counts)
        assert index is not None
        assert 1 / len(values) - 1e-12 <= index <= 1 + 1e-12


# --- a run by hand


def small_run(path: Path, policy: str = "by hand", **changes: object) -> Record:
    """Two rounds, four devices: one counts twice, one is late, one drops, one is not needed.

    Round 1 wants 2, gets 1 by its deadline at 100 s. Round 2 wants 1 and has it at 150 s.
    """
    first = header(policy, **{"devices": 4, "rounds": 2, "learning": "real"} | changes)
    return record_of(
        path,
        first,
        e.Evaluated(0, 0, 2.0, 0.1),
        e.RoundOpened(0, 1, "train", 0, 2, 1, 4),
        e.Invited(0, 1, (0, 1, 2)),
        *(e.TaskGiven(0, device, 1, 0) for device in (0, 1, 2)),
        *(e.DownloadBegan(0, device, 500) for device in (0, 1, 2)),
        *(e.DownloadEnded(10_000, device, 500) for device in (0, 1, 2)),
        *(e.TrainingBegan(10_000, device, 1) for device in (0, 1, 2)),
        e.TrainingEnded(30_000, 0, 1, 1, 10),
        e.UploadBegan(30_000, 0, 1, 400),
        e.TrainingEnded(35_000, 2, 1, 0, 0, False),
        e.DroppedOut(35_000, 2, 1, "training", False),
        e.Off(35_000, 2, "power cut"),
        e.UploadEnded(40_000, 0, 1, 400),
        e.Verdict(40_000, 0, 1, "accepted", "in time"),
        e.RoundClosed(100_000, 1, (e.Counted(0, 1, 600.0),)),
        e.ModelMade(100_000, 1, 1),
        e.Evaluated(100_000, 1, 1.0, 0.5),
        e.RoundOpened(100_000, 2, "train", 1, 1, 1, 2),
        e.Invited(100_000, 2, (0, 3)),
        *(e.TaskGiven(100_000, device, 2, 1) for device in (0, 3)),
        *(e.TrainingBegan(100_000, device, 2) for device in (0, 3)),
        e.TrainingEnded(110_000, 1, 1, 5, 50),
        e.UploadBegan(110_000, 1, 1, 400),
        e.UploadEnded(120_000, 1, 1, 400),
        e.Verdict(120_000, 1, 1, "discarded", "late"),
        e.TrainingEnded(140_000, 0, 2, 1, 10, True, 5_000),
        e.UploadBegan(140_000, 0, 2, 400),
        e.UploadEnded(150_000, 0, 2, 400),
        e.Verdict(150_000, 0, 2, "accepted", "in time"),
        e.RoundClosed(150_000, 2, (e.Counted(0, 2, 600.0),)),
        e.ModelMade(150_000, 2, 2),
        e.Evaluated(150_000, 2, 0.5, 0.9),
        e.TrainingEnded(160_000, 3, 2, 1, 10),
        e.Verdict(180_000, 3, 2, "discarded", "late"),
        e.Finished(180_000, "all rounds are done", True),
    )


def test_the_figures_of_a_run_by_hand(tmp_path: Path) -> None:
    summary = summarise([small_run(tmp_path / "r")], ["a", "b", "b", "a"], target=0.7)
    policy = summary.policies[0]
    assert policy.fates == {"counted": 2, "dropped": 1, "late": 1, "not needed": 1}
    assert (policy.rounds_done, policy.rounds_abandoned, policy.virtual_ms) == (2, 0, 150_000)
    assert (policy.download_bytes, policy.upload_bytes) == (1500, 1200)
    assert (policy.rounds_per_hour, policy.updates_per_hour) == (48, 48)

    # Device 0: 20 s and 40 s, of which 5 s again; 1: 100 s late; 2: 25 s dropped; 3: 60 s.
    assert policy.work.spent_ms == 245_000
    assert policy.work.counted_ms == 55_000
    assert {k: v for k, v in policy.work.wasted_ms.items() if v} == {
        "late": 100_000,
        "dropped": 25_000,
        "not needed": 60_000,
        "repeated": 5_000,
    }
    assert policy.work.wasted_share == pytest.approx(190 / 245)

    assert policy.participation.invited_share == 1.0
    assert policy.participation.counted_share == 0.25
    assert policy.participation.gini == pytest.approx(0.75)
    assert policy.participation.jain == pytest.approx(0.25)

    a, b = policy.profiles["a"], policy.profiles["b"]
    assert (a.devices, a.tasks, a.counted, a.not_needed, a.counted_share) == (2, 3, 2, 1, 0.5)
    assert (b.dropped, b.late, b.counted_share) == ({"training": 1}, {"training": 1}, 0.0)
    assert (b.spent_ms, b.wasted_ms) == (125_000, 125_000)


def test_what_rounds_waited_for_by_hand(tmp_path: Path) -> None:
    policy = summarise([small_run(tmp_path / "r")]).policies[0]
    first, second = policy.rounds
    assert (first.outcome, second.outcome) == ("deadline", "enough")
    assert first.waited_ms == {
        "download": 10_000, "training": 20_000, "upload": 10_000, "away": 0, "others": 60_000,
    }  # fmt: skip
    assert second.waited_ms == {
        "download": 0, "training": 40_000, "upload": 10_000, "away": 0, "others": 0,
    }  # fmt: skip
    assert policy.durations is not None
    assert (policy.durations.least_ms, policy.durations.median_ms) == (50_000, 75_000)
    assert (first.download_bytes, first.upload_bytes, second.upload_bytes) == (1500, 400, 800)


def test_time_rounds_and_bytes_to_the_target_by_hand(tmp_path: Path) -> None:
    """0.7 lies halfway between 0.5 (round 1, 100 s, 1900 bytes) and 0.9 (2, 150 s, 2700)."""
    policy = summarise([small_run(tmp_path / "r")], target=0.7).policies[0]
    assert policy.target_reached is not None
    assert policy.target_reached.rounds == pytest.approx(1.5)
    assert policy.target_reached.virtual_ms == pytest.approx(125_000)
    assert policy.target_reached.bytes == pytest.approx(2300)
    assert summarise([small_run(tmp_path / "r")], target=0.95).policies[0].target_reached is None


def test_every_policy_reaches_the_target_that_nobody_gave(tmp_path: Path) -> None:
    runs = [
        random_run(tmp_path / name, header(name, rounds=12), learns=speed)
        for name, speed in (("slow", 0.05), ("fast", 0.4))
    ]
    summary = summarise(runs)
    assert not summary.target_given
    assert all(policy.target_reached is not None for policy in summary.policies)
    assert common_target([]) is None


def test_policies_are_compared_at_the_accuracy_that_they_stop_at(tmp_path: Path) -> None:
    scenario = {"name": "small", "learning": {"stop_at_accuracy": 0.9}}
    record = small_run(tmp_path / "r", scenario=scenario)
    assert summarise([record]).target_accuracy == 0.9
    assert summarise([record]).target_given
    assert summarise([record], target=0.8).target_accuracy == 0.8


def test_the_wait_for_the_first_round_counts_in_no_rate_and_no_time_to_a_target(
    tmp_path: Path,
) -> None:
    """An hour without devices, then two rounds of half an hour, an update each."""
    hour_ms = 3_600_000
    record = record_of(
        tmp_path / "r",
        header(rounds=2, devices=4, learning="real"),
        e.Evaluated(0, 0, 2.0, 0.1),
        e.RoundOpened(hour_ms, 1, "train", 0, 1, 1, 4),
        e.TaskGiven(hour_ms, 0, 1, 0),
        e.Verdict(2 * hour_ms - 1_800_000, 0, 1, "accepted", "in time"),
        e.RoundClosed(hour_ms + 1_800_000, 1, (e.Counted(0, 1, 60.0),)),
        e.ModelMade(hour_ms + 1_800_000, 1, 1),
        e.Evaluated(hour_ms + 1_800_000, 1, 1.0, 0.5),
        e.RoundOpened(hour_ms + 1_800_000, 2, "train", 1, 1, 1, 4),
        e.TaskGiven(hour_ms + 1_800_000, 1, 2, 1),
        e.Verdict(2 * hour_ms, 1, 2, "accepted", "in time"),
        e.RoundClosed(2 * hour_ms, 2, (e.Counted(1, 2, 60.0),)),
        e.ModelMade(2 * hour_ms, 2, 2),
        e.Evaluated(2 * hour_ms, 2, 0.5, 0.9),
        e.Finished(2 * hour_ms, "all rounds are done", True),
    )
    policy = summarise([record], target=0.7).policies[0]
    assert (policy.virtual_ms, policy.first_round_ms) == (2 * hour_ms, hour_ms)
    assert (policy.rounds_per_hour, policy.updates_per_hour) == (2, 2)
    # 0.7 lies halfway between 0.5, after 30 min, and 0.9, after 60; 0.3 between 0.1 and 0.5.
    assert policy.target_reached is not None
    assert policy.target_reached.virtual_ms == pytest.approx(45 * 60_000)
    early = summarise([record], target=0.3).policies[0].target_reached
    assert early is not None
    assert early.virtual_ms == pytest.approx(15 * 60_000)


# --- any run


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_agree_with_another_account(tmp_path: Path, seed: int) -> None:
    first = header("any", seed=seed, devices=30, rounds=12)
    record = random_run(tmp_path / "r", first, cohort=14, wanted=9, collect_ms=25_000, quorum=4)
    policy, totals = summarise([record]).policies[0], record.totals
    spent_ms, counted_ms = work_of(record.events())
    assert (policy.work.spent_ms, policy.work.counted_ms) == (spent_ms, counted_ms)
    assert sum(policy.work.wasted_ms.values()) == spent_ms - counted_ms
    assert policy.tasks == totals.tasks == sum(policy.fates.values())
    closed = (event for event in record.events() if isinstance(event, e.RoundClosed))
    assert policy.updates_counted == sum(len(event.parts) for event in closed)
    dropped = [sum(p.dropped.values()) for p in policy.profiles.values()]
    assert sum(dropped) == sum(totals.dropped.values())
    assert sum(r.download_bytes for r in policy.rounds) <= policy.download_bytes
    for entry in policy.rounds:
        assert sum(entry.waited_ms.values()) == entry.duration_ms
        assert min(entry.waited_ms.values()) >= 0


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    runs = [
        random_run(tmp_path / "cut", header("cut"), cut=True),
        record_of(tmp_path / "nothing", header("nothing"), cut=True),
    ]
    cut, nothing = summarise(runs).policies
    assert (cut.complete, cut.succeeded, cut.reason) == (False, False, "interrupted")
    assert cut.verdict.startswith("Interrupted, so far: ")
    assert nothing.verdict == "Interrupted, so far: No round was finished in 0 s."
    assert nothing.durations is None
    assert (nothing.participation.gini, nothing.participation.jain) == (None, None)
    assert (nothing.first_round_ms, nothing.rounds_per_hour) == (0, 0.0)


def test_a_round_that_never_closed_is_kept(tmp_path: Path) -> None:
    opened = e.RoundOpened(5, 1, "train", 0, 2, 1, 4)
    record = record_of(tmp_path / "r", header(), opened, e.TaskGiven(5, 0, 1, 0), cut=True)
    policy = summarise([record]).policies[0]
    assert [(r.outcome, r.closed_ms, r.waited_ms) for r in policy.rounds] == [("open", None, {})]
    assert policy.fates == {"unfinished": 1}


def test_an_abandoned_round_wastes_what_was_accepted(tmp_path: Path) -> None:
    record = record_of(
        tmp_path / "r",
        header(),
        e.RoundOpened(0, 1, "train", 0, 2, 2, 4),
        e.TaskGiven(0, 7, 1, 0),
        e.TrainingBegan(0, 7, 1),
        e.TrainingEnded(1_000, 7, 1, 1, 1),
        e.Verdict(2_000, 7, 1, "accepted", "in time"),
        e.RoundAbandoned(9_000, 1, "1 of 2", ((7, 1),)),
        e.Finished(9_000, "too many abandoned rounds", False),
    )
    policy = summarise([record]).policies[0]
    assert policy.work.wasted_ms["abandoned"] == policy.work.spent_ms == 1_000
    assert policy.verdict == "No round was finished in 9 s. 1 round abandoned."


def test_a_model_that_cannot_be_made_counts_nothing(tmp_path: Path) -> None:
    """The round closes, then the aggregation fails."""
    record = record_of(
        tmp_path / "r",
        header(),
        e.RoundOpened(0, 1, "train", 0, 1, 1, 4),
        e.TaskGiven(0, 7, 1, 0),
        e.TrainingBegan(0, 7, 1),
        e.TrainingEnded(1_000, 7, 1, 1, 1),
        e.Verdict(2_000, 7, 1, "accepted", "in time"),
        e.RoundClosed(2_000, 1, (e.Counted(7, 1, 60.0),)),
        e.RoundAbandoned(9_000, 1, "not finite", ((7, 1),)),
        e.RoundOpened(9_500, 2, "train", 0, 1, 1, 4),
        e.TaskGiven(9_500, 8, 2, 0),
        e.Declined(9_600, 8, 2, "no room"),
        e.Finished(10_000, "enough", False),
    )
    policy = summarise([record]).policies[0]
    assert (policy.updates_counted, policy.rounds_done, policy.rounds_abandoned) == (0, 0, 1)
    assert policy.fates == {"abandoned": 1, "declined": 1}
    assert [entry.outcome for entry in policy.rounds] == ["abandoned", "open"]


@pytest.mark.parametrize(
    ("reason", "drop_ms", "fate"),
    [
        ("late: round 1 has closed", None, "not needed"),
        ("too stale: it is 3 models behind, at most 2 count", None, "late"),
        ("late: round 1 has closed, and training has ended", None, "unfinished"),
        ("late: round 1 has closed", 1_500, "dropped"),
        ("late: round 1 has closed", 2_500, "not needed"),
    ],
)
def test_why_an_update_was_discarded(
    tmp_path: Path, reason: str, drop_ms: int | None, fate: str
) -> None:
    """Round 1 has enough at 2 s; the other device's update comes at 9 s."""
    drop = [] if drop_ms is None else [e.DroppedOut(drop_ms, 7, 1, "training", True)]
    events: list[e.Event] = [
        e.RoundOpened(0, 1, "train", 0, 1, 1, 4),
        e.TaskGiven(0, 7, 1, 0),
        e.TaskGiven(0, 8, 1, 0),
        e.Verdict(2_000, 8, 1, "accepted", "in time"),
        e.RoundClosed(2_000, 1, (e.Counted(8, 1, 60.0),)),
        e.ModelMade(2_000, 1, 1),
        e.Verdict(9_000, 7, 1, "discarded", "late", reason),
        e.Finished(9_000, "done", True),
        *drop,
    ]
    record = record_of(tmp_path / "r", header(), *sorted(events, key=lambda x: x.at_ms))
    assert summarise([record]).policies[0].fates == {"counted": 1, fate: 1}


def test_what_devices_evaluate_is_no_training(tmp_path: Path) -> None:
    record = record_of(
        tmp_path / "r",
        header(),
        e.RoundOpened(0, 1, "evaluate", 0, 1, 1, 4),
        e.TaskGiven(0, 7, 1, 0),
        e.Verdict(2_000, 7, 1, "accepted", "in time"),
        e.RoundClosed(3_000, 1, (e.Counted(7, 1, 60.0),)),
        e.Finished(9_000, "done", True),
    )
    policy = summarise([record]).policies[0]
    assert (policy.tasks, policy.updates_counted, policy.rounds) == (0, 0, ())


def test_the_verdict_names_who_was_heard_least(tmp_path: Path) -> None:
    """Device 0 of 4 counts: of profile a one in two was heard, of b none."""
    verdict = summarise([small_run(tmp_path / "r")], ["a", "b", "b", "a"]).policies[0].verdict
    assert verdict.endswith("75.0% of the devices were never heard (worst: b, 100.0%).")


def test_the_verdict_compares(tmp_path: Path) -> None:
    runs = [
        random_run(
            tmp_path / name, header(name, rounds=20, devices=30), collect_ms=collect_ms, learns=0.2
        )
        for name, collect_ms in (("hasty", 12_000), ("patient", 600_000))
    ]
    hasty, patient = summarise(runs, profiles_of(30)).policies
    assert "the fastest" in hasty.verdict
    assert "times the time of hasty" in patient.verdict
    assert "most of it late" in hasty.verdict
    assert hasty.target_reached is not None
    assert patient.target_reached is not None
    ratio = patient.target_reached.virtual_ms / hasty.target_reached.virtual_ms
    assert f"{ratio:.2f} times the time of hasty" in patient.verdict


def test_the_summary_is_json_that_says_the_same(tmp_path: Path) -> None:
    summary = summarise([small_run(tmp_path / "r")], target=0.7)
    write_summary(summary, tmp_path / "summary.json")
    raw = json.loads((tmp_path / "summary.json").read_text())
    assert raw["format"] == 1
    assert raw["policies"][0]["work"]["wasted_ms"]["late"] == 100_000
    assert raw["policies"][0]["target_reached"]["rounds"] == pytest.approx(1.5)


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulation-report.md").read_text()
    assert [key for key in _keys(Summary) if f"`{key}`" not in text] == []


def _keys(kind: type, seen: frozenset[type] = frozenset()) -> set[str]:
    """The fields of a Struct and of those within it."""
    import typing

    found: set[str] = set()
    for name, hint in typing.get_type_hints(kind).items():
        found.add(name)
        for inner in (hint, *(x for a in typing.get_args(hint) for x in (a, *typing.get_args(a)))):
            if (
                isinstance(inner, type)
                and hasattr(inner, "__struct_fields__")
                and inner not in seen
            ):
                found |= _keys(inner, seen | {inner})
    return found


def test_no_record_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no record"):
        summarise([])


# --- the piece that is drawn


def rounds_of(*lengths_ms: int) -> list[RoundFigures]:
    begins = [sum(lengths_ms[:i]) for i in range(len(lengths_ms))]
    return [
        RoundFigures(i, begin, begin + length, "enough", 1, {}, 0, 0)
        for i, (begin, length) in enumerate(zip(begins, lengths_ms, strict=True), 1)
    ]


def test_the_window_lies_around_the_median_round() -> None:
    first_last = window(rounds_of(1, 1, 1, 1, 5, 9, 9, 9, 9), 0)
    assert first_last is not None
    first, last = first_last
    assert first <= 4 <= last
    assert last - first == 3
    assert window(rounds_of(7), 0) == (0, 0)
    assert window([], 0) is None


def test_the_window_holds_whole_tasks_where_rounds_are_short() -> None:
    first_last = window(rounds_of(*[10] * 100), 100)
    assert first_last is not None
    assert (first_last[1] - first_last[0] + 1) * 10 >= 300


def test_the_sample_shows_every_profile_and_fate() -> None:
    tasks = [Task(device, 1, 0, fate="counted") for device in range(0, 300, 3)]
    tasks += [Task(1, 1, 0, fate="late"), Task(2, 1, 0, fate="dropped")]
    chosen = sample(tasks, profiles_of(300))
    assert len(chosen) == DEVICES_MOST
    assert {1, 2} <= set(chosen)


def test_the_timeline_is_a_piece_of_the_run(tmp_path: Path) -> None:
    first: Header = header("any", devices=30, rounds=20)
    record = random_run(tmp_path / "r", first, collect_ms=20_000)
    rounds = summarise([record]).policies[0].rounds
    scene = timeline(record.events(), rounds, 4_000, profiles_of(30))
    assert scene is not None
    assert len(scene.closed) == scene.last_round - scene.first_round + 1
    assert scene.closed[-1][1] == scene.until_ms
    assert {task.device for task in scene.tasks} == set(scene.devices)
    for task in scene.tasks:
        assert all(begin <= end for _, begin, end in task.spans)


# --- words


def test_figures_as_people_read_them() -> None:
    assert [time_words(ms) for ms in (0, 850, 99_000, 150_000, 7_560_000, 3.6e9)] == [
        "0 s", "0.85 s", "99 s", "2.5 min", "2.1 h", "1,000 h",
    ]  # fmt: skip
    assert [bytes_words(size) for size in (0, 999, 1_000, 999_600, 1.234e9)] == [
        "0 B", "999 B", "1 kB", "1 MB", "1.23 GB",
    ]  # fmt: skip
    assert [share_words(share) for share in (0, 0.0001, 0.1234, 1)] == [
        "0.0%", "under 0.1%", "12.3%", "100.0%",
    ]  # fmt: skip
