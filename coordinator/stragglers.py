"""Devices that are late with a task whose update still counts. Pure.

A new task makes a device drop the one it is at work on, so whoever is slow would be asked again and
again and never finish. They are invited again when they have answered, when their update would be
too stale to count, or, since a device may have lost its task, when there are too few others
(synchronous) or nothing else has helped for long (buffered).
"""

from __future__ import annotations

import msgspec

from coordinator.config import RoundsConfig
from coordinator.round_state import Member, RoundState


def without_stragglers(state: RoundState, needed: int) -> tuple[str, ...]:
    """Devices to choose a cohort from: those online and free, or all if these are fewer than
    `needed`."""
    busy = {m.device_id for m in state.stragglers}
    free = tuple(name for name in state.online if name not in busy)
    return free if len(free) >= needed else state.online


def without_task(state: RoundState, config: RoundsConfig) -> tuple[str, ...]:
    """Buffered: devices online that can be invited. Each has one task at a time, and a round's
    once."""
    asked = {
        m.device_id for m in state.cohort if m.answer == "none" or m.round_id == state.round_id
    }
    free = tuple(name for name in state.online if name not in asked)
    if state.abandoned_in_a_row > config.abandoned_max // 2:
        return free
    late = {m.device_id for m in (*state.stragglers, *_silent(state))}
    return tuple(name for name in free if name not in late)


def still_at_work(state: RoundState, config: RoundsConfig) -> tuple[Member, ...]:
    """The stragglers once the open round has ended: those whose update could still count."""
    if state.kind == "evaluate" or (config.late == "discard" and not state.buffered):
        return ()
    again = {m.device_id for m in state.cohort}
    before = (m for m in state.stragglers if m.device_id not in again)
    # Buffered: who has a place keeps it.
    late = _silent(state) if state.buffered else state.at_work()
    oldest = state.model_version + (state.phase == "aggregating") - config.staleness_max
    return tuple(m for m in (*before, *late) if m.version >= oldest)


def _silent(state: RoundState) -> tuple[Member, ...]:
    """Those that have lost their places."""
    return tuple(m for m in state.cohort if m.answer == "silent")


def has_answered(state: RoundState, device_id: str, round_id: int | None = None) -> RoundState:
    """The state without that straggler (None: whatever the round of its task)."""
    rest = tuple(
        m
        for m in state.stragglers
        if m.device_id != device_id or round_id not in (None, m.round_id)
    )
    if rest == state.stragglers:
        return state
    return msgspec.structs.replace(state, stragglers=rest)
