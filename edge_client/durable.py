"""What a device must still know after a power cut."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from fedtide.messages import Task, Update


class Durable(Struct, frozen=True, forbid_unknown_fields=True):
    """On disk before anything that follows from it."""

    version: Literal[1] = 1
    federation: str = ""
    device: str = ""
    """Whose state this is."""
    installation: str = ""
    """Random, made once: tells two devices of one name apart."""
    task: Task | None = None
    restarts: int = 0
    """Starts since this task last made progress, but for those that ended in good order."""
    epochs_saved: int = 0
    """Of the task's training: progress is what goes beyond it."""
    outbox: tuple[Update, ...] = ()
    """The oldest first."""
    uploading: str = ""
    """Id of the update that was being uploaded when the outbox last changed."""
    run_id: str = ""
    answered_round: int = 0
    """Newest round of this run that was trained or declined."""
    declined_because: str = ""
    """Non-empty: that round was declined."""
