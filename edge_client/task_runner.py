"""The port through which a session has its tasks done."""

from __future__ import annotations

from typing import Protocol

from fedtide.bundle import Bundle
from fedtide.messages import Task


class TaskRunner(Protocol):
    """Does tasks, one at a time, and reports through `Session.task_event`."""

    runtimes: tuple[str, ...]
    """What is installed here, best first."""

    @property
    def examples_count(self) -> int:
        """Examples to train on, as they were last read."""

    steps_count: int
    """Steps made and batches judged so far: while it grows, training does not hang."""

    def check(self, bundle: Bundle) -> None:
        """Tasks of this bundle may come: tell this device's log if the local data do not fit."""

    def start(self, task: Task, bundle: Bundle, model: bytes) -> None:
        """Begin; a task that is being done is dropped."""

    def pause(self, paused: bool) -> None:
        """Do no more after the step or batch that is being computed, or go on with the next."""

    def drop(self) -> None:
        """Stop what is being done."""
