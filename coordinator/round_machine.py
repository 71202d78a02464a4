"""The round machine: owns every transition of a federation's rounds. Pure.

    waiting -> collecting -> aggregating -> waiting ... -> finished
                   |                           ^
                   +----> backing_off ---------+        fewer updates than the quorum

`step(state, event, at_ms, config)` does no I/O, reads no clock and draws no lots of its own. The
state says when it wants to be woken (`deadline_at_ms`) and why it waits (`reason`). An event that
no longer applies changes nothing. Every command can be derived again from the state (`Restarted`
does), so a crash between a commit and its commands loses nothing.

Synchronous: a round has one cohort and one deadline. Buffered (FedBuff, Nguyen et al. 2022): a
round is the buffer of the next model; devices are invited as they become free, each has a deadline
of its own, and those at work when the buffer is full carry over into the next round. Either way an
update whose round has closed may be carried into the open round, or the next one (`unwelcome`).
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import msgspec

from coordinator.cohort import select_cohort, wanted_count
from coordinator.config import RoundsConfig
from coordinator.round_state import (
    AbandonRound,
    AggregateRound,
    AggregationFailed,
    Answer,
    Command,
    DeviceArrived,
    DeviceLeft,
    Event,
    FinishFederation,
    InviteDevices,
    Member,
    Phase,
    Restarted,
    RoundAggregated,
    RoundState,
    TaskDeclined,
    TimeReached,
    UpdateAccepted,
    UpdateRejected,
    few,
    unwelcome,
    with_name,
    without_name,
)
from coordinator.stragglers import has_answered, still_at_work, without_stragglers, without_task

__all__ = [
    "AbandonRound",
    "AggregateRound",
    "AggregationFailed",
    "Command",
    "DeviceArrived",
    "DeviceLeft",
    "Event",
    "FinishFederation",
    "InviteDevices",
    "Member",
    "Phase",
    "Restarted",
    "RoundAggregated",
    "RoundState",
    "Step",
    "TaskDeclined",
    "TimeReached",
    "UpdateAccepted",
    "UpdateRejected",
    "step",
]

BACK_OFF_MS_MAX = 60_000


class Step(NamedTuple):
    """What `step` returns."""

    commands: tuple[Command, ...]
    state: RoundState


def step(state: RoundState, event: Event, at_ms: int, config: RoundsConfig) -> Step:
    """One transition."""
    match event:
        case Restarted():
            return _resume(state, at_ms, config)
        case DeviceArrived(device_id):
            online = with_name(state.online, device_id)
            return _arrived(state, _with(state, online=online), at_ms, config)
        case DeviceLeft(device_id):
            online = without_name(state.online, device_id)
            return _look(_with(state, online=online), at_ms, config)
        case UpdateAccepted():
            return _accepted(state, event, at_ms, config)
        case UpdateRejected(round_id, device_id):
            return _answer(state, round_id, device_id, "rejected", at_ms, config)
        case TaskDeclined(round_id, device_id):
            return _answer(state, round_id, device_id, "declined", at_ms, config)
        case TimeReached():
            return _time(state, at_ms, config)
        case RoundAggregated(round_id):
            return _aggregated(state, round_id, at_ms, config)
        case AggregationFailed(round_id, reason):
            if state.phase != "aggregating" or round_id != state.round_id:
                return Step((), state)
            # Nothing usable comes out of these updates: they are not tried again.
            return _abandon(state, reason, at_ms, config, carry=False)


def _resume(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    state = _with(state, online=())
    if state.phase == "collecting":
        # A clock that was set back while we were down must not stretch the round.
        latest = at_ms + config.collect_ms
        cohort = tuple(
            _with_member(m, deadline_at_ms=min(m.deadline_at_ms, latest)) for m in state.cohort
        )
        deadline = min(state.deadline_at_ms or at_ms, latest)
        pending = tuple(m.device_id for m in state.at_work())
        state = _with(state, deadline_at_ms=deadline, cohort=cohort)
        return Step((InviteDevices(pending),) if pending else (), state)
    if state.phase == "aggregating":
        state = _with(state, deadline_at_ms=at_ms + config.aggregate_ms)
        return Step((_aggregation(state),), state)
    if state.phase == "backing_off":
        deadline = min(state.deadline_at_ms or at_ms, at_ms + BACK_OFF_MS_MAX)
        return Step((), _with(state, deadline_at_ms=deadline))
    if state.phase == "finished" and state.rounds_done < config.count:
        # The configuration asks for more rounds than last time, or for another try.
        state = _with(state, phase="waiting", judged=False, abandoned_in_a_row=0)
    elif state.phase == "finished":
        return _finish(state, state.reason, succeeded=True)
    return _look(_with(state, deadline_at_ms=None), at_ms, config)


def _needed(state: RoundState, config: RoundsConfig) -> int:
    """Devices that must be online before a round opens."""
    if state.rounds_done >= config.count:
        return 1  # for the devices' opinion of the final model, and nobody waits long
    return max(config.devices_min, config.quorum)


def _arrived(before: RoundState, state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    needed = _needed(state, config)
    back = len(before.online) < needed <= len(state.online)
    if state.phase == "backing_off" and back:
        # The devices whose absence the pause was about are back.
        state = _with(state, phase="waiting", deadline_at_ms=None)
    return _look(state, at_ms, config)


def _look(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    """Open a round if it is time to; give free devices something to do."""
    if state.phase == "collecting" and state.buffered:
        return _fill(state, at_ms, config)
    if state.phase != "waiting":
        return Step((), state)
    done = state.rounds_done >= config.count
    if done and state.judged:
        return _finish(state, f"{config.count} rounds are done", succeeded=True)
    needed = _needed(state, config)
    goes_on = config.mode == "buffered" and state.at_work() and not done
    if goes_on or len(state.online) >= needed:
        return _open(state, at_ms, config)
    patience_ms = config.collect_ms if done else config.devices_wait_ms
    deadline_at_ms = state.deadline_at_ms or at_ms + patience_ms
    reason = f"{len(state.online)} of {needed} devices are online"
    return Step((), _with(state, deadline_at_ms=deadline_at_ms, reason=reason))


def _open(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    round_id = state.round_id + 1
    # After the last training round, one more in which devices only judge the final model.
    evaluates = state.rounds_done >= config.count
    buffered = config.mode == "buffered" and not evaluates
    if buffered:
        wanted = config.buffer_size
    else:
        wanted = len(state.online) if evaluates else wanted_count(config, len(state.online))
    state = _with(
        state,
        phase="collecting",
        round_id=round_id,
        kind="evaluate" if evaluates else "train",
        wanted=wanted,
        quorum=1 if evaluates else config.quorum,
        buffered=buffered,
        idle=False,
        deadline_at_ms=at_ms + config.collect_ms,
    )
    if buffered:
        return _fill(_with(state, cohort=state.at_work()), at_ms, config)
    free = state.online if evaluates else without_stragglers(state, _needed(state, config))
    device_ids = select_cohort(free, wanted, config.over_selection, config.seed, round_id)
    cohort = tuple(Member(name, "none", "", round_id, state.model_version) for name in device_ids)
    state = _with(state, cohort=cohort)
    state = _with(state, reason=_collecting_reason(state, [m.answer for m in cohort]))
    return Step((InviteDevices(device_ids),), state)


def _fill(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    """Buffered: close the round if the buffer is full, else invite whoever is free."""
    if len(state.ready()) >= state.wanted and state.devices_ready() >= state.quorum:
        return _close(state, at_ms, config)
    places = max(0, config.concurrency - len(state.at_work()))
    free = without_task(state, config) if places else ()
    chosen = select_cohort(free, min(places, len(free)), 1.0, config.seed, state.round_id)
    deadline_at_ms = at_ms + config.collect_ms
    invited = tuple(
        Member(name, "none", "", state.round_id, state.model_version, deadline_at_ms)
        for name in chosen
    )
    state = _with(state, cohort=(*state.cohort, *invited))
    working = state.at_work()
    if working:
        state = _with(state, idle=False, deadline_at_ms=min(m.deadline_at_ms for m in working))
    elif not state.idle:
        state = _with(state, idle=True, deadline_at_ms=deadline_at_ms)
    state = _with(state, reason=_buffer_reason(state))
    return Step((InviteDevices(chosen),) if chosen else (), state)


def _accepted(state: RoundState, event: UpdateAccepted, at_ms: int, config: RoundsConfig) -> Step:
    device_id, round_id = event.device_id, event.round_id
    # A late evaluation never comes this far: vetting knows what its task was.
    kind = state.kind if round_id == state.round_id else "train"
    if unwelcome(state, config, device_id, round_id, event.version, kind):
        return Step((), state)
    member = state.member(device_id, round_id)
    if member is not None and state.phase == "collecting":
        return _answer(state, round_id, device_id, "accepted", at_ms, config, event.update_id)
    late = Member(device_id, "accepted", event.update_id, round_id, event.version)
    cohort = tuple(m for m in state.cohort if m is not member)
    state = _with(has_answered(state, device_id), cohort=cohort, carried=(*state.carried, late))
    return _look(state, at_ms, config)


def _answer(
    state: RoundState,
    round_id: int,
    device_id: str,
    answer: Answer,
    at_ms: int,
    config: RoundsConfig,
    update_id: str = "",
) -> Step:
    place = state.place_of(device_id, round_id)
    known = None if place is None else state.cohort[place]
    open_now = state.phase == "collecting" or (state.buffered and known is not None)
    if not open_now or known is None or place is None or known.answer not in ("none", "silent"):
        # Of an earlier round: declined or rejected, so that device is free again.
        return _look(has_answered(state, device_id, round_id), at_ms, config)
    answered = _with_member(known, answer=answer, update_id=update_id)
    state = _with(state, cohort=(*state.cohort[:place], answered, *state.cohort[place + 1 :]))
    if state.buffered or state.phase != "collecting":
        return _look(state, at_ms, config)
    answers = [member.answer for member in state.cohort]
    state = _with(state, reason=_collecting_reason(state, answers))
    if answers.count("accepted") >= state.wanted:
        return _close(state, at_ms, config)
    if "none" not in answers:
        return _close_or_abandon(state, "every device has answered", at_ms, config)
    return Step((), state)


def _time(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    if state.deadline_at_ms is None or at_ms < state.deadline_at_ms:
        return Step((), state)
    if state.phase == "collecting" and state.buffered and not state.idle:
        cohort = tuple(
            _with_member(m, answer="silent")
            if m.answer == "none" and m.deadline_at_ms <= at_ms
            else m
            for m in state.cohort
        )
        return _fill(_with(state, cohort=cohort), at_ms, config)
    if state.phase == "collecting":
        why = "no device became free" if state.idle else "the deadline has come"
        return _close_or_abandon(state, why, at_ms, config)
    if state.phase == "aggregating":
        why = f"no model came of its updates within {config.aggregate_ms / 1000:g} s"
        return _abandon(state, why, at_ms, config, carry=False)
    if state.phase == "backing_off":
        return _look(_with(state, phase="waiting", deadline_at_ms=None), at_ms, config)
    if state.phase == "waiting" and state.rounds_done >= config.count:
        return _look(_with(state, judged=True, deadline_at_ms=None), at_ms, config)
    if state.phase == "waiting":
        return _finish(state, f"nobody waits for ever: {state.reason}", succeeded=False)
    return Step((), state)


def _close_or_abandon(state: RoundState, why: str, at_ms: int, config: RoundsConfig) -> Step:
    ready = state.devices_ready()
    if ready >= state.quorum:
        return _close(state, at_ms, config)
    reason = f"{why} with {ready} of at least {state.quorum} {_things(state)}"
    return _abandon(state, reason, at_ms, config, carry=True)


def _abandon(
    state: RoundState, reason: str, at_ms: int, config: RoundsConfig, *, carry: bool
) -> Step:
    command = AbandonRound(state.round_id, reason)
    if state.kind == "evaluate":  # nobody asks twice for the devices' opinion
        state = _with(state, phase="waiting", cohort=(), judged=True, deadline_at_ms=None)
        commands, state = _look(state, at_ms, config)
        return Step((command, *commands), state)
    keeps = carry and (config.late == "discount" or state.buffered)
    abandoned = state.abandoned_in_a_row + 1
    state = _with(
        state,
        cohort=state.at_work() if state.buffered else (),
        carried=(*state.carried, *state.accepted()) if keeps else state.carried,
        stragglers=still_at_work(state, config),
        idle=False,
        deadline_at_ms=None,
        abandoned_in_a_row=abandoned,
    )
    if abandoned >= config.abandoned_max:
        told = f"{abandoned} rounds in a row were abandoned; last: {reason}"
        finish, state = _finish(state, told, succeeded=False)
        return Step((command, *finish), state)
    pause_ms = min(config.back_off_ms * 2 ** min(abandoned - 1, 16), BACK_OFF_MS_MAX)
    state = _with(
        state,
        phase="backing_off",
        deadline_at_ms=at_ms + pause_ms,
        reason=f"{reason}; the next round opens after {pause_ms / 1000:g} s",
    )
    return Step((command,), state)


def _close(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    # What was carried into this round belongs to it now; what is late from here on, to the next.
    if state.kind == "train":
        state = _with(state, cohort=(*state.cohort, *state.carried), carried=())
    state = _with(state, phase="aggregating", deadline_at_ms=at_ms + config.aggregate_ms)
    things = f"{len(state.accepted())} {_things(state)}"
    return Step((_aggregation(state),), _with(state, idle=False, reason=f"aggregating {things}"))


def _aggregated(state: RoundState, round_id: int, at_ms: int, config: RoundsConfig) -> Step:
    if state.phase != "aggregating" or round_id != state.round_id:
        return Step((), state)
    trained = state.kind == "train"
    state = _with(
        state,
        phase="waiting",
        deadline_at_ms=None,
        cohort=state.at_work() if state.buffered else (),
        stragglers=still_at_work(state, config),
        rounds_done=state.rounds_done + trained,
        judged=not trained,
        model_version=state.model_version + trained,
        abandoned_in_a_row=0,
    )
    return _look(state, at_ms, config)


def _finish(state: RoundState, reason: str, *, succeeded: bool) -> Step:
    state = _with(state, phase="finished", cohort=(), deadline_at_ms=None, reason=reason)
    return Step((FinishFederation(reason, succeeded),), state)


def _aggregation(state: RoundState) -> AggregateRound:
    update_ids = tuple(member.update_id for member in state.accepted())
    return AggregateRound(state.round_id, state.kind, update_ids)


def _things(state: RoundState) -> str:
    return "updates" if state.kind == "train" else "evaluations"


def _collecting_reason(state: RoundState, answers: list[Answer]) -> str:
    here = f"{answers.count('accepted')} of {state.wanted} {_things(state)} are here"
    working = (m.device_id for m in state.cohort if m.answer == "none")
    return f"{here}; waiting for {few(list(islice(working, 6)), answers.count('none'))}"


def _buffer_reason(state: RoundState) -> str:
    working = few([member.device_id for member in state.at_work()])
    here = f"{len(state.ready())} of {state.wanted} updates are in the buffer"
    return f"{here}; " + (f"at work: {working}" if working else "waiting for a free device")


def _with(state: RoundState, **changes: object) -> RoundState:
    return msgspec.structs.replace(state, **changes)


def _with_member(member: Member, **changes: object) -> Member:
    return msgspec.structs.replace(member, **changes)
