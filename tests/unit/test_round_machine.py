"""The round machine, transition by transition: the whole state after each."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.config import RoundsConfig
from coordinator.round_machine import (
    AbandonRound,
    AggregateRound,
    AggregationFailed,
    DeviceArrived,
    DeviceLeft,
    Event,
    FinishFederation,
    InviteDevices,
    Member,
    Restarted,
    RoundAggregated,
    RoundState,
    TaskDeclined,
    TimeReached,
    UpdateAccepted,
    UpdateRejected,
    step,
)

CONFIG = RoundsConfig(
    count=2, cohort_size=2, quorum=1, devices_min=2, collect_ms=1_000, back_off_ms=300
)
COLLECTING = RoundState(
    phase="collecting",
    round_id=1,
    wanted=2,
    quorum=1,
    cohort=(Member("a"), Member("b")),
    deadline_at_ms=6_000,
    online=("a", "b"),
    reason="0 of 2 updates are here; waiting for a, b",
)
HALF = msgspec.structs.replace(
    COLLECTING,
    cohort=(Member("a", "accepted", "ua"), Member("b")),
    reason="1 of 2 updates are here; waiting for b",
)
AGGREGATING = msgspec.structs.replace(
    COLLECTING,
    phase="aggregating",
    cohort=(Member("a", "accepted", "ua"), Member("b", "accepted", "ub")),
    deadline_at_ms=None,
    reason="aggregating 2 updates",
)
BACKING_OFF = msgspec.structs.replace(
    COLLECTING,
    phase="backing_off",
    cohort=(),
    deadline_at_ms=6_300,
    abandoned_in_a_row=1,
    reason="the deadline has come with 0 of at least 1 updates",
)


def after(state: RoundState, event: Event, at_ms: int = 5_000) -> tuple[object, RoundState]:
    commands, new = step(state, event, at_ms, CONFIG)
    return commands, new


def test_the_first_device_waits_for_the_second() -> None:
    commands, state = after(RoundState(), DeviceArrived("b"))
    assert commands == ()
    reason = "1 of 2 devices are online"
    assert state == RoundState(online=("b",), reason=reason, deadline_at_ms=5_000 + 86_400_000)
    commands, state = after(state, DeviceArrived("a"))
    assert commands == (InviteDevices(("a", "b")),)
    assert state == COLLECTING


def test_an_update_counts() -> None:
    assert after(COLLECTING, UpdateAccepted(1, "a", "ua")) == ((), HALF)


def test_the_last_wanted_update_closes_the_round() -> None:
    commands, state = after(HALF, UpdateAccepted(1, "b", "ub"))
    assert commands == (AggregateRound(1, "train", ("ua", "ub")),)
    assert state == AGGREGATING


@pytest.mark.parametrize("event", [UpdateRejected(1, "b"), TaskDeclined(1, "b")])
def test_when_all_have_answered_nobody_waits(event: Event) -> None:
    commands, state = after(HALF, event)
    assert commands == (AggregateRound(1, "train", ("ua",)),)
    assert (state.phase, state.reason) == ("aggregating", "aggregating 1 updates")


def test_the_deadline_with_and_without_a_quorum() -> None:
    assert after(COLLECTING, TimeReached(), 5_999) == ((), COLLECTING)
    commands, state = after(HALF, TimeReached(), 6_000)
    assert commands == (AggregateRound(1, "train", ("ua",)),)
    commands, state = after(COLLECTING, TimeReached(), 6_000)
    reason = "the deadline has come with 0 of at least 1 updates"
    assert (commands, state) == ((AbandonRound(1, reason),), BACKING_OFF)


def test_after_the_pause_there_is_another_round() -> None:
    assert after(BACKING_OFF, TimeReached(), 6_299) == ((), BACKING_OFF)
    commands, state = after(BACKING_OFF, TimeReached(), 6_300)
    assert commands == (InviteDevices(("a", "b")),)
    assert state == msgspec.structs.replace(
        COLLECTING, round_id=2, deadline_at_ms=7_300, abandoned_in_a_row=1
    )


def test_pauses_double_up_to_a_minute() -> None:
    pauses = []
    for abandoned in range(10):
        state = msgspec.structs.replace(COLLECTING, abandoned_in_a_row=abandoned)
        _, new = after(state, TimeReached(), 6_000)
        assert new.deadline_at_ms is not None
        pauses.append(new.deadline_at_ms - 6_000)
    assert pauses == [300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 60000, 60000]


def test_a_model_is_followed_by_the_next_round() -> None:
    commands, state = after(AGGREGATING, RoundAggregated(1))
    assert commands == (InviteDevices(("a", "b")),)
    assert state == msgspec.structs.replace(COLLECTING, round_id=2, rounds_done=1, model_version=1)


def test_the_last_model_is_judged_and_then_all_is_done() -> None:
    last = msgspec.structs.replace(AGGREGATING, rounds_done=1, model_version=1, round_id=2)
    commands, state = after(last, RoundAggregated(2))
    assert commands == (InviteDevices(("a", "b")),)
    assert (state.kind, state.round_id, state.model_version) == ("evaluate", 3, 2)
    _, state = after(state, UpdateAccepted(3, "a", "ea"))
    commands, state = after(state, UpdateAccepted(3, "b", "eb"))
    assert commands == (AggregateRound(3, "evaluate", ("ea", "eb")),)
    commands, state = after(state, RoundAggregated(3))
    assert commands == (FinishFederation("2 rounds are done", True),)
    assert state == RoundState(
        phase="finished",
        round_id=3,
        kind="evaluate",
        rounds_done=2,
        judged=True,
        model_version=2,
        wanted=2,
        quorum=1,
        online=("a", "b"),
        reason="2 rounds are done",
    )


def test_too_many_abandoned_rounds_end_it_with_a_reason() -> None:
    state = msgspec.structs.replace(BACKING_OFF, abandoned_in_a_row=20)
    commands, state = after(state, TimeReached(), 6_300)
    assert commands == (
        FinishFederation(
            "20 rounds in a row were abandoned; last: "
            "the deadline has come with 0 of at least 1 updates",
            False,
        ),
    )
    assert state.phase == "finished"


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (COLLECTING, UpdateAccepted(0, "a", "ua")),
        (COLLECTING, UpdateAccepted(2, "a", "ua")),
        (COLLECTING, UpdateAccepted(1, "stranger", "us")),
        (COLLECTING, RoundAggregated(1)),
        (COLLECTING, TimeReached()),
        (HALF, UpdateAccepted(1, "a", "another")),
        (HALF, UpdateRejected(1, "a")),
        (HALF, TaskDeclined(1, "a")),
        (AGGREGATING, UpdateAccepted(1, "a", "ua")),
        (AGGREGATING, RoundAggregated(2)),
        (AGGREGATING, TimeReached()),
        (BACKING_OFF, UpdateAccepted(1, "a", "ua")),
        (BACKING_OFF, TaskDeclined(1, "a")),
        (RoundState(), UpdateAccepted(0, "a", "ua")),
        (RoundState(), RoundAggregated(0)),
        (RoundState(), TimeReached()),
    ],
)
def test_what_does_not_apply_changes_nothing(state: RoundState, event: Event) -> None:
    assert after(state, event) == ((), state)


def test_devices_come_and_go_while_a_round_runs() -> None:
    for state in (COLLECTING, HALF, AGGREGATING, BACKING_OFF):
        assert after(state, DeviceLeft("b")) == (
            (),
            msgspec.structs.replace(state, online=("a",)),
        )
        assert after(state, DeviceArrived("c")) == (
            (),
            msgspec.structs.replace(state, online=("a", "b", "c")),
        )


def test_a_restart_derives_every_command_again() -> None:
    alone = {"online": ()}
    assert after(HALF, Restarted()) == (
        (InviteDevices(("b",)),),
        msgspec.structs.replace(HALF, **alone),
    )
    assert after(AGGREGATING, Restarted()) == (
        (AggregateRound(1, "train", ("ua", "ub")),),
        msgspec.structs.replace(AGGREGATING, **alone),
    )
    assert after(BACKING_OFF, Restarted()) == (
        (),
        msgspec.structs.replace(BACKING_OFF, **alone),
    )


def test_a_clock_that_was_set_back_does_not_stretch_a_round() -> None:
    _, state = after(HALF, Restarted(), at_ms=0)
    assert state.deadline_at_ms == 1_000


def test_more_rounds_than_last_time_go_on() -> None:
    finished = RoundState(phase="finished", rounds_done=1, model_version=1, round_id=2, judged=True)
    commands, state = after(finished, Restarted())
    assert commands == ()
    assert (state.phase, state.judged) == ("waiting", False)
    done = msgspec.structs.replace(finished, rounds_done=2, reason="2 rounds are done")
    commands, _ = after(done, Restarted())
    assert commands == (FinishFederation("2 rounds are done", True),)


def test_nobody_waits_for_ever() -> None:
    _, state = after(RoundState(), DeviceArrived("b"))
    commands, state = after(state, TimeReached(), 5_000 + 86_400_000)
    reason = "nobody waits for ever: 1 of 2 devices are online"
    assert commands == (FinishFederation(reason, False),)
    commands, state = after(state, Restarted())
    assert (commands, state.phase) == ((), "waiting")


def test_the_final_model_does_not_wait_for_devices_that_are_gone() -> None:
    last = msgspec.structs.replace(
        AGGREGATING, rounds_done=1, model_version=1, round_id=2, online=()
    )
    commands, state = after(last, RoundAggregated(2))
    assert (commands, state.phase, state.deadline_at_ms) == ((), "waiting", 6_000)
    commands, _ = after(state, TimeReached(), 6_000)
    assert commands == (FinishFederation("2 rounds are done", True),)
    commands, _ = after(state, DeviceArrived("a"))
    assert commands == (InviteDevices(("a",)),)


def test_more_rounds_configured_during_the_final_evaluation_are_run() -> None:
    judging = msgspec.structs.replace(COLLECTING, kind="evaluate", rounds_done=1, round_id=2)
    commands, state = after(judging, TimeReached(), 6_000)  # CONFIG asks for two
    reason = "the deadline has come with 0 of at least 1 updates"
    assert commands == (AbandonRound(2, reason), InviteDevices(("a", "b")))
    assert (state.kind, state.round_id) == ("train", 3)


def test_an_aggregate_that_cannot_be_made_abandons_its_round() -> None:
    assert after(AGGREGATING, AggregationFailed(2, "old")) == ((), AGGREGATING)
    commands, state = after(AGGREGATING, AggregationFailed(1, "the aggregate is unusable"))
    assert commands == (AbandonRound(1, "the aggregate is unusable"),)
    assert (state.phase, state.deadline_at_ms) == ("backing_off", 5_300)


def test_a_quorum_that_is_changed_counts_from_the_next_round() -> None:
    strict = msgspec.structs.replace(CONFIG, quorum=2)
    commands, _ = step(HALF, TimeReached(), 6_000, strict)
    assert commands == (AggregateRound(1, "train", ("ua",)),)
