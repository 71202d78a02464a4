"""All that the session machine knows, what it is woken for, and what the world sees of it. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import Struct

from edge_client.durable import Durable
from edge_client.outbox import OUTBOX_BYTES_MAX, Wait, deadlines_at_ms
from edge_client.session_events import Command, ConditionsJudged
from fedtide.messages import Presence

ALL_HOLD = ConditionsJudged("", "")
"""Of a device that asks for no conditions."""
TEXT_CHARS_MAX = 1_000
"""Of a text on the wire; a longer one would be malformed."""
HELLO_MS = 30_000
"""Until the coordinator says otherwise."""


class State(Struct, frozen=True):
    """Everything the machine knows."""

    durable: Durable = Durable()
    phase: Literal["idle", "fetching", "training"] = "idle"
    reason: str = ""
    connected: bool = False
    welcomed: bool = False
    coordinator_session: str = ""
    coordinator_gone: bool = False
    """Its beacon says so: it is off, or has finished."""
    hello: Wait | None = None
    hello_ms: int = HELLO_MS
    offers: dict[str, Wait] = {}
    """Updates of the outbox by id, and when to offer them again."""
    uploading: str = ""
    """Id of the update whose content the coordinator asked for last, until its receipt."""
    outbox_bytes_max: int = OUTBOX_BYTES_MAX
    link_reason: str = "not connected yet"
    retry_ms: int = 0
    """Why there is no link, if there is none, and the pause before the next attempt."""
    spread_ms: int = 0
    notice: str = ""
    """As the last Welcome said: how a fleet spreads its hellos; why this device is not invited."""
    training_held: str = ""
    transfers_held: str = ""
    """Conditions of this device for which training waits, and fetching and sending."""
    unready_said: bool = False
    """The last hello said that this device takes no task."""

    @property
    def held(self) -> str:
        """Why this device takes no task now; empty: it does."""
        return "; ".join(filter(None, (self.training_held, self.transfers_held)))


class Step(NamedTuple):
    """What `step` returns."""

    commands: tuple[Command, ...]
    state: State


def next_deadline_at_ms(state: State) -> int | None:
    """When to send `TimeReached`, whatever else happens."""
    if not state.connected:
        return None
    deadlines = [] if state.hello is None else [state.hello.at_ms]
    if state.welcomed and not state.transfers_held:  # nobody listens before
        deadlines += deadlines_at_ms(state.durable.outbox, state.uploading, state.offers)
    return min(deadlines, default=None)


def presence(state: State, *, sending: bool) -> Presence:
    """What the world may know about this device."""
    round_id = state.durable.task.round_id if state.durable.task else state.durable.answered_round
    phase = state.phase
    if phase == "idle" and (sending or state.durable.outbox):
        return Presence(True, "uploading", round_id, f"{len(state.durable.outbox)} in the outbox")
    reason = state.reason
    if phase == "idle" and not reason:
        expected = "a task" if state.welcomed else "the coordinator"
        reason = state.notice or f"waiting for {expected}"
    if phase == "training" and not reason and state.durable.task is not None:
        reason = f"{state.durable.epochs_saved} of {state.durable.task.plan.epochs} epochs are done"
    return Presence(True, phase, round_id, reason)
