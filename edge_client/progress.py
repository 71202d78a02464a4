"""How far the training of the task at hand has come, on disk: a power cut costs one local epoch,
or `training.lost_ms_max` of training where epochs are shorter.

One file, replaced atomically. It is of one task, bundle, model, plan, trainer and set of local
data, and of what the round began with: of anything else, or damaged, it is nothing, and training
starts anew. What goes on from it gives the same bits as training that was never interrupted.

A vector file (`edge_client.vector_file`): MessagePack of `_Header`; the model, and the vectors of
the optimizer.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
from msgspec import Struct

from edge_client.data.rows import Column, in_parts
from edge_client.optimizers import OptimizerState
from edge_client.vector_file import raw_bytes, read_vectors, split_values, write_vectors
from fedtide.errors import StateError
from fedtide.files import disk_errors_of
from fedtide.measures import Measure, Metrics, Natural
from fedtide.messages import Task
from fedtide.vectors import Vector

if TYPE_CHECKING:
    from edge_client.trainers import Trainer
    from edge_client.training import Progress

_log = logging.getLogger(__name__)

FILE_NAME = "progress"


class Checkpoint(NamedTuple):
    """A task's training after some of its epochs."""

    epochs: int
    """Done."""
    parameters: Vector
    """float32, the model up to `manifest.local.stop`; what follows is frozen."""
    optimizer: OptimizerState | None
    """None: it begins afresh."""
    losses: tuple[float, ...]
    """Mean loss of each epoch."""
    training_ms: int
    """What the work has taken so far."""
    held_out: Metrics | None
    """Of the global model, on the device's held-out data."""
    steps: int = 0
    """Made of the epoch that follows."""
    partial: Measure = Measure(0.0, 0.0)
    """Of their loss."""


class _Header(Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    basis: bytes
    epochs: int
    losses: tuple[float, ...]
    training_ms: int
    held_out: Metrics | None
    steps: int
    """The optimizer's."""
    sizes: tuple[int, ...]
    """Values of the model, and of each of the optimizer's vectors."""
    epoch_steps: Natural = 0
    partial: tuple[float, float] = (0.0, 0.0)


class SavedProgress:
    """The file `FOLDER/progress`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def load(self, basis: Callable[[], bytes]) -> Checkpoint | None:
        """What was saved last, if it was on this basis.

        Raises:
            StateError: the disk is failing.
        """
        try:
            read = read_vectors(self._path)
        except FileNotFoundError:
            return None
        found = None if read is None else _parsed(*read)
        if found is None:
            _log.warning("the saved progress of a training is damaged; it starts anew")
        elif found[0] == basis():
            return found[1]
        else:
            _log.info("the saved progress is of another training; this one starts anew")
        self.remove()
        return None

    def save(self, basis: bytes, checkpoint: Checkpoint) -> None:
        """On disk when this returns.

        Raises:
            StateError: the disk is full or failing; the last progress is intact.
        """
        steps, optimizer_vectors = checkpoint.optimizer or OptimizerState(0, ())
        vectors = (checkpoint.parameters, *optimizer_vectors)
        header = msgspec.msgpack.encode(
            _Header(
                version=1,
                basis=basis,
                epochs=checkpoint.epochs,
                losses=checkpoint.losses,
                training_ms=checkpoint.training_ms,
                held_out=checkpoint.held_out,
                steps=steps,
                sizes=tuple(map(len, vectors)),
                epoch_steps=checkpoint.steps,
                partial=(checkpoint.partial.sum, checkpoint.partial.weight),
            )
        )
        write_vectors(self._path, header, vectors)

    def remove(self) -> None:
        """The task is over.

        Raises:
            StateError: the disk is failing.
        """
        with disk_errors_of(self._path.parent):
            self._path.unlink(missing_ok=True)


class EpochSaver:
    """Saves after an epoch, unless the loss of this one and the next would still be bearable."""

    def __init__(
        self,
        trainer: Trainer,
        epochs: int,
        lost_ms_max: int,
        save: Callable[[Progress, Vector, tuple[float, ...]], None],
        losses: tuple[float, ...] = (),
    ) -> None:
        """`save(progress, parameters, losses)` may raise StateError; `losses`: of earlier lives."""
        self._trainer = trainer
        self._changing = trainer.manifest.local.stop
        self._epochs = epochs
        self._lost_s_max = lost_ms_max / 1000
        self._save = save
        self._losses = list(losses)
        self._saved_s = self._epoch_s = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """After an epoch, or within one before a pause, whose length nobody knows. A disk that is
        full costs the promise, not the training."""
        now_s = time.monotonic()
        if progress.steps:
            self._store(progress, now_s)
            return
        self._losses.append(progress.loss)
        next_end_s = 2 * now_s - self._epoch_s
        self._epoch_s = now_s
        if progress.epochs == self._epochs or next_end_s - self._saved_s <= self._lost_s_max:
            return
        self._store(progress, now_s)

    def _store(self, progress: Progress, now_s: float) -> None:
        parameters = self._trainer.parameters()[: self._changing]
        try:
            self._save(progress, parameters, tuple(self._losses))
        except StateError as exc:
            _log.warning("progress is not saved, a power cut would cost it: %s", exc.args[0])
        else:
            self._saved_s = now_s


def basis_of(task: Task, setup: Iterable[str], arrays: Iterable[Column]) -> bytes:
    """SHA-256 of all that decides what a training computes: the task, how this device is set up
    for it, and the arrays it starts with (data, local state)."""
    identity = [
        task.run_id,
        str(task.round_id),
        task.bundle.digest,
        task.model.digest,
        repr(task.plan),
        *setup,
    ]
    digest = hashlib.sha256(msgspec.json.encode(identity))
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        for part in in_parts(array):
            digest.update(raw_bytes(part))
    return digest.digest()


def _parsed(raw: bytes, values: Vector) -> tuple[bytes, Checkpoint] | None:
    try:
        header = msgspec.msgpack.decode(raw, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    vectors = split_values(values, header.sizes)
    if vectors is None:
        return None
    return header.basis, Checkpoint(
        header.epochs,
        vectors[0],
        OptimizerState(header.steps, tuple(vectors[1:])),
        header.losses,
        header.training_ms,
        header.held_out,
        header.epoch_steps,
        Measure(*header.partial),
    )
