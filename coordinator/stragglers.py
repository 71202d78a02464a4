"""Devices still at work on a round that has closed, where late updates count. Pure.

A new task makes a device drop the one it is at work on, so whoever is slow would be asked again and
again and never finish. They are invited again when they have answered, when their update would be
too stale to count, or when there are too few others.
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


def without_task(state: RoundState) -> tuple[str, ...]:
    """Buffered: devices online that can be invited. Each has one task at a time, and a round's
    once."""
    asked = {
        m.device_id for m in state.cohort if m.answer == "none" or m.round_id == state.round_id
    }
    return tuple(name for name in state.online if name not in asked)


def still_at_work(state: RoundState, config: RoundsConfig) -> tuple[Member, ...]:
    """The stragglers once the open round has ended: those whose update could still count."""
    if state.buffered or config.late == "discard" or state.kind == "evaluate":
        return ()
    again = {m.device_id for m in state.cohort}
    before = (m for m in state.stragglers if m.device_id not in again)
    oldest = state.model_version + (state.phase == "aggregating") - config.staleness_max
    return tuple(m for m in (*before, *state.at_work()) if m.version >= oldest)


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
