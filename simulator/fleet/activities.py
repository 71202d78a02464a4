"""What a device is in the midst of. One that broke off is another one when it goes on."""

from __future__ import annotations

from edge_client.config import TrainingConfig
from fedtide.messages import Task, Update
from simulator.fleet.profiles import Work

LOST_MS_MAX = TrainingConfig().lost_ms_max


class Download:
    """Of the bundle, a model, or both; `version`: of the model that is here after it."""

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

    def epochs_saved(self, took_ms: float) -> int:
        """Epochs that are on the disk after so long, without those of before.

        As by `edge_client.progress.EpochSaver`: never the plan's last one, and while epochs are
        short only as many as keep a power cut from costing more than `LOST_MS_MAX`.
        """
        epoch_ms, left = self.work.epoch_ms, self.task.plan.epochs - self.epochs_before
        finished = min(int(took_ms / epoch_ms), left - 1)
        apart = max(1, int(LOST_MS_MAX / epoch_ms))
        return finished // apart * apart


class Upload:
    """Of what is missing of an update."""

    __slots__ = ("began_ms", "bytes", "takes_ms", "update")

    def __init__(self, update: Update, size_bytes: int) -> None:
        self.update, self.bytes = update, size_bytes
        self.began_ms = self.takes_ms = 0
