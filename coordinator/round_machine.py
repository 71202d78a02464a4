"""The round machine: owns every transition of a federation's rounds. Pure.

    waiting -> collecting -> aggregating -> waiting ... -> finished
                   |                           ^
                   +----> backing_off ---------+        fewer updates than the quorum

`step(state, event, at_ms, config)` does no I/O, reads no clock and draws no lots of its own. The
state says when it wants to be woken (`deadline_at_ms`) and why it waits (`reason`). An event that
no longer applies changes nothing. Every command can be derived again from the state (`Restarted`
does), so a crash between a commit and its commands loses nothing.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from coordinator.cohort import select_cohort, wanted_count
from coordinator.config import RoundsConfig
from fedtide.messages import Kind

Phase = Literal["waiting", "collecting", "aggregating", "backing_off", "finished"]
BACK_OFF_MS_MAX = 60_000


class Member(Struct, frozen=True):
    """One invited device and its answer."""

    device_id: str
    answer: Literal["none", "accepted", "rejected", "declined"] = "none"
    update_id: str = ""


class RoundState(Struct, frozen=True):
    """Everything the machine knows; digests and names, never arrays."""

    phase: Phase = "waiting"
    round_id: int = 0
    """The newest round that was opened; 0 before the first."""
    kind: Kind = "train"
    rounds_done: int = 0
    """Training rounds that succeeded."""
    judged: bool = False
    """Whether the devices have been asked to evaluate the newest model."""
    model_version: int = 0
    """The newest global model; 0 is the initial one."""
    wanted: int = 0
    quorum: int = 0
    """Of the open round, whatever the configuration says by now."""
    cohort: tuple[Member, ...] = ()
    deadline_at_ms: int | None = None
    abandoned_in_a_row: int = 0
    online: tuple[str, ...] = ()
    """Devices that can be invited, sorted."""
    reason: str = "no device has said hello yet"
    """What is being waited for."""

    def accepted(self) -> tuple[Member, ...]:
        """Members whose update counts, in order of device id: the order of aggregation."""
        return tuple(member for member in self.cohort if member.answer == "accepted")

    def member(self, device_id: str) -> Member | None:
        """The cohort's entry for a device."""
        return next((m for m in self.cohort if m.device_id == device_id), None)


class Restarted(Struct, frozen=True, tag=True):
    """The coordinator has just started; nobody is known to be online."""


class DeviceArrived(Struct, frozen=True, tag=True):
    """A device said hello."""

    device_id: str


class DeviceLeft(Struct, frozen=True, tag=True):
    """A device said goodbye, or its will did, or it has been silent for too long."""

    device_id: str


class UpdateAccepted(Struct, frozen=True, tag=True):
    """An update of this round passed vetting and is on disk."""

    round_id: int
    device_id: str
    update_id: str


class UpdateRejected(Struct, frozen=True, tag=True):
    """An update of this round failed vetting."""

    round_id: int
    device_id: str


class TaskDeclined(Struct, frozen=True, tag=True):
    """A device cannot do the task."""

    round_id: int
    device_id: str


class TimeReached(Struct, frozen=True, tag=True):
    """The clock has passed `deadline_at_ms`."""


class RoundAggregated(Struct, frozen=True, tag=True):
    """The aggregate of this round is on disk."""

    round_id: int


class AggregationFailed(Struct, frozen=True, tag=True):
    """No usable model comes out of this round's updates."""

    round_id: int
    reason: str


Event = (
    Restarted
    | DeviceArrived
    | DeviceLeft
    | UpdateAccepted
    | UpdateRejected
    | TaskDeclined
    | TimeReached
    | RoundAggregated
    | AggregationFailed
)


class InviteDevices(Struct, frozen=True):
    """Send the round's task to these devices."""

    device_ids: tuple[str, ...]


class AggregateRound(Struct, frozen=True):
    """Make the next global model (or, after an evaluation, its metrics) from these updates."""

    round_id: int
    kind: Kind
    update_ids: tuple[str, ...]


class AbandonRound(Struct, frozen=True):
    """Record that the round came to nothing, and why."""

    round_id: int
    reason: str


class FinishFederation(Struct, frozen=True):
    """All rounds are done, or no more will be tried."""

    reason: str
    succeeded: bool


Command = InviteDevices | AggregateRound | AbandonRound | FinishFederation


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
            online = tuple(sorted({*state.online, device_id}))
            return _look(_with(state, online=online), at_ms, config)
        case DeviceLeft(device_id):
            online = tuple(name for name in state.online if name != device_id)
            return _look(_with(state, online=online), at_ms, config)
        case UpdateAccepted(round_id, device_id, update_id):
            return _answer(state, round_id, Member(device_id, "accepted", update_id), at_ms, config)
        case UpdateRejected(round_id, device_id):
            return _answer(state, round_id, Member(device_id, "rejected"), at_ms, config)
        case TaskDeclined(round_id, device_id):
            return _answer(state, round_id, Member(device_id, "declined"), at_ms, config)
        case TimeReached():
            return _time(state, at_ms, config)
        case RoundAggregated(round_id):
            return _aggregated(state, round_id, at_ms, config)
        case AggregationFailed(round_id, reason):
            if state.phase != "aggregating" or round_id != state.round_id:
                return Step((), state)
            return _abandon(state, reason, at_ms, config)


def _resume(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    state = _with(state, online=())
    if state.phase == "collecting":
        # A clock that was set back while we were down must not stretch the round.
        deadline = min(state.deadline_at_ms or at_ms, at_ms + config.collect_ms)
        pending = tuple(m.device_id for m in state.cohort if m.answer == "none")
        return Step((InviteDevices(pending),), _with(state, deadline_at_ms=deadline))
    if state.phase == "aggregating":
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


def _look(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    """Open a round if it is time to."""
    if state.phase != "waiting":
        return Step((), state)
    done = state.rounds_done >= config.count
    if done and state.judged:
        return _finish(state, f"{config.count} rounds are done", succeeded=True)
    if state.abandoned_in_a_row >= config.abandoned_max:
        return _finish(
            state,
            f"{state.abandoned_in_a_row} rounds in a row were abandoned; last: {state.reason}",
            succeeded=False,
        )
    # For the devices' opinion of the final model one is enough, and nobody waits long.
    needed = 1 if done else max(config.devices_min, config.quorum)
    if len(state.online) >= needed:
        return _open(state, at_ms, config)
    patience_ms = config.collect_ms if done else config.devices_wait_ms
    deadline_at_ms = state.deadline_at_ms or at_ms + patience_ms
    reason = f"{len(state.online)} of {needed} devices are online"
    return Step((), _with(state, deadline_at_ms=deadline_at_ms, reason=reason))


def _open(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    round_id = state.round_id + 1
    # After the last training round, one more in which devices only judge the final model.
    evaluates = state.rounds_done >= config.count
    wanted = len(state.online) if evaluates else wanted_count(config, len(state.online))
    device_ids = select_cohort(state.online, wanted, config.over_selection, config.seed, round_id)
    state = _with(
        state,
        phase="collecting",
        round_id=round_id,
        kind="evaluate" if evaluates else "train",
        wanted=wanted,
        quorum=1 if evaluates else config.quorum,
        cohort=tuple(Member(device_id) for device_id in device_ids),
        deadline_at_ms=at_ms + config.collect_ms,
    )
    return Step((InviteDevices(device_ids),), _with(state, reason=_collecting_reason(state)))


def _answer(
    state: RoundState, round_id: int, answer: Member, at_ms: int, config: RoundsConfig
) -> Step:
    known = state.member(answer.device_id)
    applies = state.phase == "collecting" and round_id == state.round_id
    if not applies or known is None or known.answer != "none":
        return Step((), state)
    cohort = tuple(answer if m.device_id == answer.device_id else m for m in state.cohort)
    state = _with(state, cohort=cohort)
    state = _with(state, reason=_collecting_reason(state))
    if len(state.accepted()) >= state.wanted:
        return _close(state)
    if all(member.answer != "none" for member in cohort):
        return _close_or_abandon(state, "every device has answered", at_ms, config)
    return Step((), state)


def _time(state: RoundState, at_ms: int, config: RoundsConfig) -> Step:
    if state.deadline_at_ms is None or at_ms < state.deadline_at_ms:
        return Step((), state)
    if state.phase == "collecting":
        return _close_or_abandon(state, "the deadline has come", at_ms, config)
    if state.phase == "backing_off":
        return _look(_with(state, phase="waiting", deadline_at_ms=None), at_ms, config)
    if state.phase == "waiting" and state.rounds_done >= config.count:
        return _look(_with(state, judged=True, deadline_at_ms=None), at_ms, config)
    if state.phase == "waiting":
        return _finish(state, f"nobody waits for ever: {state.reason}", succeeded=False)
    return Step((), state)


def _close_or_abandon(state: RoundState, why: str, at_ms: int, config: RoundsConfig) -> Step:
    accepted = len(state.accepted())
    if accepted >= state.quorum:
        return _close(state)
    reason = f"{why} with {accepted} of at least {state.quorum} updates"
    return _abandon(state, reason, at_ms, config)


def _abandon(state: RoundState, reason: str, at_ms: int, config: RoundsConfig) -> Step:
    command = AbandonRound(state.round_id, reason)
    state = _with(state, cohort=(), reason=reason, deadline_at_ms=None)
    if state.kind == "evaluate":  # nobody asks twice for the devices' opinion
        commands, state = _look(_with(state, phase="waiting", judged=True), at_ms, config)
        return Step((command, *commands), state)
    abandoned = state.abandoned_in_a_row + 1
    pause_ms = min(config.back_off_ms * 2 ** min(abandoned - 1, 16), BACK_OFF_MS_MAX)
    state = _with(
        state,
        phase="backing_off",
        abandoned_in_a_row=abandoned,
        deadline_at_ms=at_ms + pause_ms,
    )
    return Step((command,), state)


def _close(state: RoundState) -> Step:
    count = len(state.accepted())
    state = _with(
        state, phase="aggregating", deadline_at_ms=None, reason=f"aggregating {count} updates"
    )
    return Step((_aggregation(state),), state)


def _aggregated(state: RoundState, round_id: int, at_ms: int, config: RoundsConfig) -> Step:
    if state.phase != "aggregating" or round_id != state.round_id:
        return Step((), state)
    trained = state.kind == "train"
    state = _with(
        state,
        phase="waiting",
        cohort=(),
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


def _collecting_reason(state: RoundState) -> str:
    silent = [member.device_id for member in state.cohort if member.answer == "none"]
    named = ", ".join(silent[:5]) + (" …" if len(silent) > 5 else "")
    return f"{len(state.accepted())} of {state.wanted} updates are here; waiting for {named}"


def _with(state: RoundState, **changes: object) -> RoundState:
    return msgspec.structs.replace(state, **changes)
