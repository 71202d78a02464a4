"""What a device is in the midst of. One that broke off is another one when it goes on."""

from __future__ import annotations

from fedtide.messages import Task, Update
from simulator.fleet.profiles import Work


class Download:
    """Of the bundle and a model."""

    __slots__ = ("began_ms", "bytes", "takes_ms", "version")

    def __init__(self, version: int, size_bytes: int, began_ms: int, takes_ms: int) -> None:
        self.version, self.bytes = version, size_bytes
        self.began_ms, self.takes_ms = began_ms, takes_ms


class Training:
    """Of a task, from its start or from a saved epoch on."""

    __slots__ = ("began_ms", "epochs_before", "task", "work")

    def __init__(self, task: Task, work: Work, began_ms: int, epochs_before: int) -> None:
        self.task, self.work = task, work
        self.began_ms, self.epochs_before = began_ms, epochs_before


class Upload:
    """Of what is missing of an update."""

    __slots__ = ("began_ms", "bytes", "takes_ms", "update")

    def __init__(self, update: Update, size_bytes: int) -> None:
        self.update, self.bytes = update, size_bytes
        self.began_ms = self.takes_ms = 0
