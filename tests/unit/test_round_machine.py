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
    count=2,
    cohort_size=2,
    quorum=1,
    devices_min=2,
    collect_ms=1_000,
    aggregate_ms=9_000,
    back_off_ms=300,
)


def cohort(round_id: int = 1, version: int = 0, a: str = "", b: str = "") -> tuple[Member, ...]:
    """Of a and b, with the updates that were accepted."""
    return tuple(
        Member(name, "accepted" if update else "none", update, round_id, version)
        for name, update in (("a", a), ("b", b))
    )


COLLECTING = RoundState(
    phase="collecting",
    round_id=1,
    wanted=2,
    quorum=1,
    cohort=cohort(),
    deadline_at_ms=6_000,
    online=("a", "b"),
    reason="0 of 2 updates are here; waiting for a, b",
)
HALF = msgspec.structs.replace(
    COLLECTING,
    cohort=cohort(a="ua"),
    reason="1 of 2 updates are here; waiting for b",
)
AGGREGATING = msgspec.structs.replace(
    COLLECTING,
    phase="aggregating",
    cohort=cohort(a="ua", b="ub"),
    deadline_at_ms=14_000,
    reason="aggregating 2 updates",
)
BACKING_OFF = msgspec.structs.replace(
    COLLECTING,
    phase="backing_off",
    cohort=(),
    deadline_at_ms=6_300,
    abandoned_in_a_row=1,
    reason="the deadline has come with 0 of at least 1 updates; the next round opens after 0.3 s",
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
        COLLECTING, round_id=2, cohort=cohort(2), deadline_at_ms=7_300, abandoned_in_a_row=1
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
    assert state == msgspec.structs.replace(
        COLLECTING, round_id=2, cohort=cohort(2, 1), rounds_done=1, model_version=1
    )


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
    state = msgspec.structs.replace(COLLECTING, abandoned_in_a_row=19)
    commands, state = after(state, TimeReached(), 6_000)
    reason = "the deadline has come with 0 of at least 1 updates"
    told = f"20 rounds in a row were abandoned; last: {reason}"
    assert commands == (AbandonRound(1, reason), FinishFederation(told, False))
    assert state.phase == "finished"


def test_the_pause_ends_when_enough_devices_are_back() -> None:
    alone = msgspec.structs.replace(BACKING_OFF, online=("a",))
    assert after(alone, DeviceArrived("a")) == ((), alone)
    commands, state = after(alone, DeviceArrived("b"))
    assert commands == (InviteDevices(("a", "b")),)
    assert (state.phase, state.round_id) == ("collecting", 2)


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
    reason = "the deadline has come with 0 of at least 1 evaluations"
    assert commands == (AbandonRound(2, reason), InviteDevices(("a", "b")))
    assert (state.kind, state.round_id) == ("train", 3)


def test_an_aggregate_that_cannot_be_made_abandons_its_round() -> None:
    assert after(AGGREGATING, AggregationFailed(2, "old")) == ((), AGGREGATING)
    commands, state = after(AGGREGATING, AggregationFailed(1, "the aggregate is unusable"))
    assert commands == (AbandonRound(1, "the aggregate is unusable"),)
    assert (state.phase, state.deadline_at_ms) == ("backing_off", 5_300)


def test_a_model_that_does_not_come_abandons_its_round() -> None:
    assert after(AGGREGATING, TimeReached(), at_ms=13_999) == ((), AGGREGATING)
    commands, state = after(AGGREGATING, TimeReached(), at_ms=14_000)
    assert commands == (AbandonRound(1, "no model came of its updates within 9 s"),)
    assert (state.phase, state.deadline_at_ms) == ("backing_off", 14_300)
    assert after(state, RoundAggregated(1), at_ms=14_001) == ((), state)  # too late


def test_a_quorum_that_is_changed_counts_from_the_next_round() -> None:
    strict = msgspec.structs.replace(CONFIG, quorum=2)
    commands, _ = step(HALF, TimeReached(), 6_000, strict)
    assert commands == (AggregateRound(1, "train", ("ua",)),)


# ---- late updates ----

DISCOUNT = msgspec.structs.replace(CONFIG, late="discount", staleness_max=1, count=5)
NEXT = msgspec.structs.replace(
    COLLECTING, round_id=2, cohort=cohort(2, 1), rounds_done=1, model_version=1
)


def late(state: RoundState, version: int = 0, device: str = "a") -> RoundState:
    commands, new = step(state, UpdateAccepted(1, device, "late", version), 5_000, DISCOUNT)
    assert commands == ()
    return new


def test_a_late_update_is_carried_into_the_open_round() -> None:
    carried = Member("a", "accepted", "late", 1, 0)
    state = late(NEXT)
    assert state == msgspec.structs.replace(NEXT, carried=(carried,))
    assert late(state) == state  # the same again
    commands, state = step(state, UpdateAccepted(2, "b", "ub", 1), 5_000, DISCOUNT)
    assert commands == ()  # it does not take the place of one that is wanted
    commands, state = step(state, UpdateAccepted(2, "a", "ua", 1), 5_000, DISCOUNT)
    assert commands == (AggregateRound(2, "train", ("late", "ua", "ub")),)
    assert state.carried == ()


def test_a_late_update_while_a_model_is_made_counts_in_the_next() -> None:
    straggling = msgspec.structs.replace(AGGREGATING, cohort=cohort(a="ua"))
    state = late(straggling, device="b")
    assert [m.device_id for m in state.carried] == ["b"]
    commands, state = step(state, RoundAggregated(1), 5_000, DISCOUNT)
    assert commands == (InviteDevices(("a", "b")),)
    assert [m.device_id for m in state.carried] == ["b"]


@pytest.mark.parametrize(
    ("state", "config"),
    [
        (NEXT, CONFIG),  # late = "discard"
        (msgspec.structs.replace(NEXT, model_version=2), DISCOUNT),  # two behind
        (msgspec.structs.replace(AGGREGATING, model_version=1, round_id=2), DISCOUNT),  # will be
        (msgspec.structs.replace(NEXT, kind="evaluate", rounds_done=5), DISCOUNT),
        (msgspec.structs.replace(NEXT, phase="finished", rounds_done=5), DISCOUNT),
    ],
)
def test_what_is_too_late_changes_nothing(state: RoundState, config: RoundsConfig) -> None:
    assert step(state, UpdateAccepted(1, "a", "late", 0), 5_000, config) == ((), state)


SLOW = msgspec.structs.replace(
    AGGREGATING, cohort=cohort(a="ua"), online=("a", "b", "c", "d"), reason="aggregating 1 updates"
)
"""Round 1 closes without b."""


def test_a_straggler_is_left_in_peace_until_it_has_answered() -> None:
    commands, state = step(SLOW, RoundAggregated(1), 5_000, DISCOUNT)
    (invitation,) = commands
    assert isinstance(invitation, InviteDevices)
    assert "b" not in invitation.device_ids
    assert state.stragglers == (Member("b", "none", "", 1, 0),)
    for answer in (UpdateAccepted(1, "b", "late"), UpdateRejected(1, "b"), TaskDeclined(1, "b")):
        assert step(state, answer, 5_000, DISCOUNT).state.stragglers == ()
    assert step(state, TaskDeclined(2, "b"), 5_000, DISCOUNT).state.stragglers == state.stragglers


def test_a_straggler_whose_update_would_be_too_stale_is_asked_again() -> None:
    state = step(SLOW, RoundAggregated(1), 5_000, DISCOUNT).state
    for version in range(1, DISCOUNT.staleness_max + 1):
        assert [m.device_id for m in state.stragglers] == ["b"]
        closed = msgspec.structs.replace(state, phase="aggregating", cohort=(), rounds_done=0)
        assert closed.model_version == version
        state = step(closed, RoundAggregated(closed.round_id), 5_000, DISCOUNT).state
    assert state.stragglers == ()


def test_stragglers_are_asked_again_where_there_are_too_few_others() -> None:
    few = msgspec.structs.replace(SLOW, online=("a", "b"))
    commands, _ = step(few, RoundAggregated(1), 5_000, DISCOUNT)
    assert commands == (InviteDevices(("a", "b")),)
    discarding = step(SLOW, RoundAggregated(1), 5_000, CONFIG).state
    assert discarding.stragglers == ()


def test_updates_of_an_abandoned_round_are_carried_and_meet_the_quorum() -> None:
    strict = msgspec.structs.replace(HALF, quorum=2)
    commands, state = step(strict, TimeReached(), 6_000, DISCOUNT)
    assert isinstance(commands[0], AbandonRound)
    assert [m.update_id for m in state.carried] == ["ua"]
    config = msgspec.structs.replace(DISCOUNT, quorum=2)
    _, state = step(state, TimeReached(), 6_300, config)
    _, state = step(state, UpdateAccepted(2, "b", "ub", 0), 6_400, config)
    commands, state = step(state, TimeReached(), 7_300, config)
    assert commands == (AggregateRound(2, "train", ("ua", "ub")),)


def test_updates_that_make_no_model_are_not_tried_again() -> None:
    _, state = step(AGGREGATING, AggregationFailed(1, "unusable"), 5_000, DISCOUNT)
    assert (state.phase, state.carried) == ("backing_off", ())


# ---- the buffered mode ----

BUFFERED = RoundsConfig(
    count=2, mode="buffered", buffer_size=2, concurrency=2, collect_ms=1_000, devices_min=1
)


def play(state: RoundState, *events: Event, at_ms: int = 5_000) -> tuple[list[object], RoundState]:
    commands: list[object] = []
    for event in events:
        more, state = step(state, event, at_ms, BUFFERED)
        commands += more
    return commands, state


def test_devices_are_invited_as_they_become_free() -> None:
    commands, state = play(RoundState(), *(DeviceArrived(name) for name in "abc"))
    assert commands == [InviteDevices(("a",)), InviteDevices(("b",))]
    assert state.reason == "0 of 2 updates are in the buffer; at work: a, b"
    commands, state = play(state, UpdateAccepted(1, "a", "ua"))
    assert commands == [InviteDevices(("c",))]
    assert [m.device_id for m in state.at_work()] == ["b", "c"]


def test_whoever_is_at_work_carries_over() -> None:
    _, state = play(RoundState(), *(DeviceArrived(name) for name in "abc"))
    commands, state = play(state, UpdateAccepted(1, "a", "ua"), UpdateAccepted(1, "b", "ub"))
    assert commands[-1] == AggregateRound(1, "train", ("ua", "ub"))
    commands, state = play(state, RoundAggregated(1))
    carried_over, invited = state.at_work()
    assert (carried_over.device_id, carried_over.round_id, invited.round_id) == ("c", 1, 2)
    commands, state = play(state, UpdateAccepted(1, "c", "uc", 0))
    assert [m.update_id for m in state.ready()] == ["uc"]


def test_a_silent_device_loses_its_place_but_not_its_update() -> None:
    _, state = play(RoundState(), *(DeviceArrived(name) for name in "abc"))
    commands, state = play(state, TimeReached(), at_ms=6_000)
    assert commands == [InviteDevices(("c",))]
    assert [m.answer for m in state.cohort] == ["silent", "silent", "none"]
    _, state = play(state, UpdateAccepted(1, "a", "ua"), at_ms=6_500)
    assert [m.update_id for m in state.ready()] == ["ua"]


def test_a_buffer_that_cannot_be_filled_closes_with_what_is_there() -> None:
    _, state = play(RoundState(), DeviceArrived("a"))
    commands, state = play(state, UpdateAccepted(1, "a", "ua"))
    assert (commands, state.idle, state.deadline_at_ms) == ([], True, 6_000)
    assert state.reason == "1 of 2 updates are in the buffer; waiting for a free device"
    _, state = play(state, DeviceLeft("a"), DeviceArrived("a"), at_ms=5_900)
    assert state.deadline_at_ms == 6_000  # coming and going does not stretch it
    commands, state = play(state, TimeReached(), at_ms=6_000)
    assert commands == [AggregateRound(1, "train", ("ua",))]


def test_a_slow_device_is_not_asked_again_while_its_update_would_count() -> None:
    _, state = play(RoundState(), *(DeviceArrived(name) for name in "abcd"))
    _, state = play(state, TimeReached(), at_ms=6_000)  # a and b lose their places
    assert [m.device_id for m in state.at_work()] == ["c", "d"]
    answers = UpdateAccepted(1, "c", "uc"), UpdateAccepted(1, "d", "ud")
    commands, state = play(state, *answers, RoundAggregated(1), at_ms=6_500)
    assert commands[-1] == InviteDevices(("c", "d"))
    assert [m.device_id for m in state.stragglers] == ["a", "b"]
    _, state = play(state, DeviceLeft("a"), DeviceArrived("a"), at_ms=6_600)
    assert [m.device_id for m in state.at_work()] == ["c", "d"]
    commands, state = play(state, UpdateAccepted(1, "a", "ua", 0), at_ms=6_700)
    assert [m.update_id for m in state.carried] == ["ua"]
    assert [m.device_id for m in state.stragglers] == ["b"]


def test_a_slow_device_that_carries_over_and_loses_its_place_is_left_in_peace() -> None:
    _, state = play(RoundState(), *(DeviceArrived(name) for name in "abc"))
    answers = UpdateAccepted(1, "a", "ua"), UpdateAccepted(1, "b", "ub"), RoundAggregated(1)
    _, state = play(state, *answers)  # c is at work on round 1 still
    commands, state = play(state, DeviceLeft("a"), DeviceLeft("b"), TimeReached(), at_ms=6_500)
    assert commands == []
    assert {m.answer for m in state.cohort} == {"silent"}


def test_where_nothing_else_helps_slow_devices_are_asked_again() -> None:
    _, state = play(RoundState(), DeviceArrived("a"))
    _, state = play(state, TimeReached(), at_ms=6_000)
    assert state.idle
    at_ms, invited = 6_000, 0
    for _ in range(2 * BUFFERED.abandoned_max):
        at_ms = state.deadline_at_ms or at_ms
        commands, state = play(state, TimeReached(), at_ms=at_ms)
        invited += sum(isinstance(command, InviteDevices) for command in commands)
        if state.abandoned_in_a_row <= BUFFERED.abandoned_max // 2:
            assert not invited
    assert invited


def test_a_slow_device_that_declines_its_earlier_task_is_invited_at_once() -> None:
    _, state = play(RoundState(), DeviceArrived("a"))
    for _ in range(3):  # it falls silent, the round is abandoned, the next one opens
        _, state = play(state, TimeReached(), at_ms=state.deadline_at_ms or 0)
    assert (state.round_id, state.idle, state.at_work()) == (2, True, ())
    commands, _ = play(state, TaskDeclined(1, "a"), at_ms=7_500)
    assert commands == [InviteDevices(("a",))]
