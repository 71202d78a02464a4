"""Situations in which a round stands still, each with what must be said of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from coordinator.config import RoundsConfig
from coordinator.diagnosis import NAMED_MAX, DeviceFacts, Facts, confirmed, diagnose, seem_idle
from coordinator.fleet import twin_notice
from coordinator.round_state import Member, RoundState
from edge_client.session_state import State
from edge_client.waits import waits_of
from fedtide.checkup import Finding, Level

BUFFERED = RoundsConfig(
    count=10, mode="buffered", buffer_size=10, quorum=2, devices_min=2, collect_ms=60_000
)
ROUNDS = RoundsConfig(count=10, cohort_size=2, quorum=2, devices_min=2, collect_ms=60_000)


def facts(phase: str = "waiting", *devices: DeviceFacts, **more: Any) -> Facts:
    """A federation in round 3 whose coordinator runs; the cohort follows from the devices."""
    cohort = tuple(Member(d.device_id, d.answer) for d in devices if d.answer)  # type: ignore[arg-type]
    online = tuple(more.pop("online", ()))
    state = RoundState(
        phase,  # type: ignore[arg-type]
        3,
        rounds_done=2,
        wanted=2,
        quorum=2,
        cohort=cohort,
        online=online,
        reason=more.pop("reason", ""),
        abandoned_in_a_row=more.pop("abandoned", 0),
    )
    return Facts(
        state,
        more.pop("rounds", ROUNDS),
        **{
            "running": True,
            "beacon": "online",
            "devices": devices,
            **more,
        },
    )


def device(name: str, phase: str = "idle", answer: str = "none", **more: Any) -> DeviceFacts:
    return DeviceFacts(name, 5_000, phase, answer=answer, **more)


class Case(NamedTuple):
    name: str
    facts: Facts
    level: Level
    said: str
    todo: str = ""


HERE = device("a", "training", doing="epoch 2 of 5")
HOT = waits_of(State(training_held="71 °C"), None, 0)["conditions"].text
CASES = [
    Case("all is well", facts("collecting", HERE, device("b", "training"), deadline_ms=9_000), "ok",
         "round 3: 0 of 2 updates, 2 devices at work, 9.0 s left"),
    Case("revoked", facts("collecting", HERE, device("b", "", revoked=True)), "warning",
         "b is revoked: nothing from it counts", "device add b"),
    Case("progress", facts("collecting", HERE, device("b")), "ok", "a is training: epoch 2 of 5"),
    Case("not running", facts("collecting", HERE, running=False, beacon="offline"), "problem",
         "the coordinator is not running: no round can go on", "fedtide coordinator"),
    Case("no link", facts(running=True, beacon="offline"), "problem",
         "the coordinator's process runs, but its beacon is not at the broker", "its log"),
    Case("elsewhere", facts(running=False), "warning",
         "online, but none holds this state folder", "another state_dir"),
    Case("finished", facts("finished", reason="10 rounds are done", running=False), "ok",
         "the federation has finished: 10 rounds are done", "raise rounds.count"),
    Case("nobody yet", facts(), "warning", "0 of 2 devices are online, and none has ever"),
    Case("too few exist", facts("waiting", device("a", answer=""), online=["a"]), "problem",
         "and only 1 has ever said hello", "lower rounds.devices_min (2)"),
    Case("one is away",
         facts("waiting", device("a", answer=""),
               DeviceFacts("b", 7_200_000, "offline", "stopped"), online=["a"]), "problem",
         "known and not here: b (came last 2 h ago; stopped)"),
    Case("one waits for its conditions",
         facts("waiting", device("a", answer=""), device("b", answer="", doing=HOT), online=["a"]),
         "problem", f"known and not here: b (came last 5.0 s ago; {HOT})"),
    Case("paused", facts("collecting", HERE, device("b", "training", doing=HOT)), "warning",
         f"b was invited and {HOT}", "it goes on by itself"),
    Case("offline", facts("collecting", HERE, device("b", "offline")), "warning",
         "b was invited and is offline (power or link were lost)", "start its client"),
    Case("no presence", facts("collecting", HERE, device("b", "")), "warning",
         "the broker knows no presence of it", "presence/b"),
    Case("idle", facts("collecting", HERE, device("b", doing="waiting for the coordinator")),
         "warning", "b was invited and does nothing about it: waiting for the coordinator",
         "on b: fedtide doctor client.toml"),
    Case("uploading", facts("collecting", HERE, device("b", "uploading", doing="34 of 102 blocks"),
                            upload_quiet_ms=1_000), "ok", "b is uploading: 34 of 102 blocks"),
    Case("stalled", facts("collecting", HERE, device("b", "uploading", doing="34 of 102 blocks"),
                          upload_quiet_ms=90_000), "warning",
         "b is uploading: 34 of 102 blocks, but no block has come for 1 min 30 s", "very slow"),
    Case("declined", facts("collecting", HERE,
                           device("b", answer="declined", answer_reason="there is no data file")),
         "warning", "b declines: there is no data file", "on b: fedtide doctor"),
    Case("quorum lost", facts("collecting", HERE, device("b", answer="declined")), "problem",
         "the quorum of 2 is out of reach"),
    Case("rejected", facts("collecting", HERE,
                           device("b", answer="rejected", answer_reason="a value is not finite")),
         "warning", "b: its update was rejected: a value is not finite"),
    Case("quarantined",
         facts("waiting", device("b", answer="", quarantined_ms=600_000,
                                 quarantined_because="3 rejected updates")),
         "warning", "b is quarantined for 10 min: 3 rejected updates", "invited again by itself"),
    Case("all decline",
         facts("collecting", device("a", answer="declined"), device("b", answer="declined"),
               declines=("no memory", "no memory", "other")), "problem",
         "all 2 devices of round 3 decline, most of them because: no memory", "bundle or the plan"),
    Case("one reason", facts("waiting", declines=("no memory",) * 3), "warning",
         "3 of the newest declines have one reason: no memory"),
    Case("abandoned", facts("backing_off", reason="the deadline has come with 1 of at least 2",
                            abandoned=4), "warning", "4 in a row (it gives up at 20)"),
    Case("deadline too short", facts(answered_ms=(50_000,) * 7 + (95_000,) * 3, late_count=3),
         "problem", "3 of the newest 10 updates came late, nine of ten came within 1 min 35 s",
         "set rounds.collect_ms to 150000 or more"),
    Case("deadline tight", facts(answered_ms=(55_000,) * 10), "warning",
         "nine of ten updates came within 55 s of 1 min", "set rounds.collect_ms to 90000"),
    Case("fewer than asked for",
         facts("collecting", HERE, device("b"), rounds=RoundsConfig(count=10, cohort_size=20)),
         "warning", "the round opened with fewer devices online: it asks for 2 updates"),
    Case("blind", facts("collecting", HERE, reachable=False), "warning",
         "what it does is not known without the broker"),
    Case("stopped", facts("waiting", device("a", answer=""), device("b", answer=""),
                          running=False, beacon="offline"), "warning",
         "how many devices are online is unknown while the coordinator is stopped: start it"),
    Case("no broker", facts("waiting", device("a", answer=""), reachable=False, beacon="unknown"),
         "warning", "how many devices are online is unknown while the broker cannot be reached"),
    Case("newly invited", facts("collecting", HERE, device("b", newly_invited=True)), "ok",
         "b has just been invited"),
    Case("large buffer", facts("collecting", HERE, online=["a", "b"], rounds=BUFFERED), "warning",
         "rounds.buffer_size 10 exceeds the 2 devices that are online: each model waits "
         "rounds.collect_ms (1 min)", "set rounds.buffer_size to 2 or less"),
    Case("twins now", facts("waiting", device("a", answer="", doing=twin_notice("a", "0123"))),
         "warning", "a: another installation uses the name a now", "a name, and a state_dir"),
    Case("twins once", facts(twins_refused=7), "ok",
         "a second installation under a name in use was refused 7 times so far", "log names it"),
    Case("full disk", facts("collecting", HERE, device(
             "b", "training", doing="the disk is full: the update waits for room")), "warning",
         "b: the disk is full: the update waits for room", "free space on b"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_situation_has_its_sentence(case: Case) -> None:
    found = diagnose(case.facts)
    assert [
        f for f in found if f.level == case.level and case.said in f.what and case.todo in f.todo
    ], found


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("all is well", "finished", "nobody yet")]
)
def test_nothing_is_a_problem_where_all_is_well(case: Case) -> None:
    assert all(finding.level != "problem" for finding in diagnose(case.facts))


def test_a_deadline_that_suits_is_not_mentioned() -> None:
    found = diagnose(facts(answered_ms=(20_000,) * 10))
    assert not [f for f in found if "deadline" in f.what]


def test_a_large_fleet_is_counted_not_listed() -> None:
    devices = [device(f"d{number}", "offline") for number in range(500)]
    found = diagnose(facts("collecting", *devices))
    assert len(found) < NAMED_MAX + 5
    assert found[-1] == Finding("warning", "... and 480 more devices", "see fedtide status")


@pytest.mark.parametrize(("task_round", "level"), [(3, "warning"), (4, "ok")])
def test_idle_is_who_was_so_with_the_same_task_a_moment_ago(task_round: int, level: Level) -> None:
    suspects = seem_idle(facts("collecting", HERE, device("b", task_round=3)))
    assert suspects == {"b": 3}
    second = facts("collecting", HERE, device("b", task_round=task_round))
    found = diagnose(confirmed(second, suspects))
    assert [f.level for f in found if f.what.startswith("b ")] == [level]


@pytest.mark.parametrize("why", [{"running": False, "beacon": "offline"}, {"reachable": False}])
def test_who_is_online_is_not_guessed(why: dict[str, Any]) -> None:
    for rounds in (ROUNDS, BUFFERED):
        found = diagnose(facts("waiting", device("a", answer=""), rounds=rounds, **why))
        assert not [f for f in found if "not here" in f.what or "devices that are" in f.what]
