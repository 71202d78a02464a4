"""What a campaign reached, and what it never did."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from coordinator.round_machine import Event as RoundEvent
from coordinator.round_machine import Phase
from edge_client.session_events import Event as SessionEvent
from fedtide.failpoints import STEPS
from fedtide.messages import ToDevice
from simulator.faults.kinds import KINDS

SESSION_PHASES = ("idle", "fetching", "training")


def expected() -> list[str]:
    """Everything that could be reached, by the names that a world counts it under."""
    rounds = [
        f"round: {phase} x {e.__name__}" for phase in get_args(Phase) for e in get_args(RoundEvent)
    ]
    events = [e.__name__ for e in get_args(SessionEvent) if e.__name__ != "Heard"]
    events += [f"Heard {message.__name__}" for message in get_args(ToDevice)]
    sessions = [f"session: {phase} x {event}" for phase in SESSION_PHASES for event in events]
    return [*rounds, *sessions, *(f"step: {s}" for s in STEPS), *(f"drawn: {k}" for k in KINDS)]


def never_reached(counts: Counter[str]) -> list[str]:
    """What is expected and was not counted, unless it is known to be out of reach."""
    return [name for name in expected() if not counts[name] and name not in UNREACHABLE]


_ONE_JOB = "an aggregate is of the newest round, which stays until it is there or abandoned"
_ENDED = "the process ends with this phase"
_OWN_TASK = "the session's own tasks report in the phase that they are in"
UNREACHABLE: dict[str, str] = {
    **{
        f"round: {phase} x {event}": _ONE_JOB
        for phase in ("waiting", "collecting")
        for event in ("RoundAggregated", "AggregationFailed")
    },
    **{
        f"round: finished x {event.__name__}": _ENDED
        for event in get_args(RoundEvent)
        if event.__name__ != "Restarted"
    },
    **{
        f"session: {phase} x {event}": _OWN_TASK
        for phase, events in {
            "idle": ("BlocksArrived", "TaskPrepared", "EpochsSaved", "TaskHeld", "TaskDone"),
            "fetching": ("EpochsSaved", "TaskHeld", "TaskDone"),
            "training": ("BlocksArrived", "TaskPrepared"),
        }.items()
        for event in events
    },
    "session: idle x TaskFailed": _OWN_TASK,
    "session: fetching x TaskFailed": "every bundle on offer can be used here",
}
"""Why each of these cannot be reached here."""
