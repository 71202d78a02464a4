"""What a campaign reached, and what it never did."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from coordinator.round_machine import Event as RoundEvent
from coordinator.round_machine import Phase
from edge_client.session_events import Event as SessionEvent
from fedtide.failpoints import STEPS
from fedtide.messages import ToDevice
from simulator.faults import KINDS

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


UNREACHABLE: dict[str, str] = {
    "step: disk: rename": "counted with the write before it",
}
"""Why each of these cannot be reached here."""
