"""What the session machine hears (events) and what it orders (commands)."""

from __future__ import annotations

from msgspec import Struct

from fedtide.messages import Decline, Offer, Range, Receipt, Task, ToDevice, Update, Welcome


class Linked(Struct, frozen=True):
    """The link is up."""


class Unlinked(Struct, frozen=True):
    """The link is down."""

    reason: str
    retry_ms: int = 0
    """Until it is tried again."""


class Heard(Struct, frozen=True):
    """The coordinator said something, to us or to all."""

    message: ToDevice


class BlocksArrived(Struct, frozen=True):
    """Something of what is being fetched came, and is on disk."""


class TaskPrepared(Struct, frozen=True):
    """Bundle and model of the task are on disk."""

    run_id: str
    round_id: int


class EpochsSaved(Struct, frozen=True):
    """So many epochs of the training are on disk."""

    run_id: str
    round_id: int
    epochs: int


class TaskHeld(Struct, frozen=True):
    """The task is done, or as good as, and waits for something on this device."""

    run_id: str
    round_id: int
    reason: str


class TaskDone(Struct, frozen=True):
    """The update is on disk."""

    update: Update


class UpdateLost(Struct, frozen=True):
    """The content of an update in the outbox is gone or damaged on this device's disk."""

    update_id: str


class TaskFailed(Struct, frozen=True):
    """The task cannot be done on this device. `reason` leaves it: nothing of the data in it."""

    run_id: str
    round_id: int
    reason: str
    logged: bool = False
    """This device's log has said more already."""


class ConditionsJudged(Struct, frozen=True):
    """This device's own conditions (`edge_client.conditions`): what waits for them, and why."""

    training: str
    """Why nothing is trained; empty: it may be."""
    transfers: str
    """Why nothing large is fetched or sent; empty: it may be."""


class Stopped(Struct, frozen=True):
    """The client ends because it was asked to: this life was no crash."""


class TimeReached(Struct, frozen=True):
    """The clock has passed `next_deadline_at_ms`."""


Event = (
    Linked
    | Unlinked
    | Heard
    | BlocksArrived
    | TaskPrepared
    | EpochsSaved
    | TaskHeld
    | TaskDone
    | TaskFailed
    | UpdateLost
    | ConditionsJudged
    | Stopped
    | TimeReached
)


class SayHello(Struct, frozen=True):
    """Say what this device holds and owes."""


class Say(Struct, frozen=True):
    """Say this to the coordinator."""

    message: Offer | Decline


class Prefetch(Struct, frozen=True):
    """Fetch what any task will need: the bundle. Which model, only a task says."""

    welcome: Welcome


class PrepareTask(Struct, frozen=True):
    """Fetch what this task needs, then `TaskPrepared`."""

    task: Task


class StartTask(Struct, frozen=True):
    """Train or evaluate, then `TaskDone` or `TaskFailed`."""

    task: Task


class Adapt(Struct, frozen=True):
    """Train, fetch and send, or do so no further, as the state says what is held."""


class DropTask(Struct, frozen=True):
    """Stop whatever is being done for this round."""

    round_id: int


class SendBlocks(Struct, frozen=True):
    """Send these blocks of an update's blob."""

    update: Update
    missing: tuple[Range, ...]


class ForgetUpdate(Struct, frozen=True):
    """The coordinator has spoken; the blob may go."""

    update: Update
    receipt: Receipt | None


class Note(Struct, frozen=True):
    """Tell the log."""

    text: str


Command = (
    SayHello
    | Say
    | Prefetch
    | PrepareTask
    | StartTask
    | Adapt
    | DropTask
    | SendBlocks
    | ForgetUpdate
    | Note
)
