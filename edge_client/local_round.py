"""What a device does for one task, between its start and its update: evaluate the global model,
train it, and go on with a training that was interrupted."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import numpy as np

from edge_client.data.rows import LocalDataset
from edge_client.local_state import LocalState
from edge_client.optimizers import OptimizerState
from edge_client.progress import Checkpoint, EpochSaver, SavedProgress, basis_of
from edge_client.trainers import Trainer
from edge_client.training import OnStep, Progress, TrainResult, evaluate, train
from fedtide.failpoints import reach
from fedtide.measures import Metrics
from fedtide.messages import Task
from fedtide.vectors import Vector

_log = logging.getLogger(__name__)


class Keeping(NamedTuple):
    """How the progress of a training is kept."""

    saved: SavedProgress
    lost_ms_max: int
    setup: tuple[str, ...]
    """Of this device, as far as it decides what training computes."""
    on_saved: Callable[[int], None]
    """Called with the number of epochs that are safe now."""


class Outcome(NamedTuple):
    """What a task came to."""

    result: TrainResult | None
    """None after an evaluation; its losses are those of all epochs."""
    training_ms: int
    """Of the whole work, earlier lives of the client included."""
    held_out: Metrics | None


def do_task(
    task: Task,
    trainer: Trainer,
    dataset: LocalDataset,
    start: Vector,
    before: LocalState,
    keeping: Keeping,
    on_step: OnStep,
    paused: Callable[[], bool] | None = None,
) -> Outcome:
    """Evaluate the model `start`, float32[elements_count], and train it if the task says so.

    `on_step` follows each batch that is evaluated, too. Where `paused()` says that it will wait for
    long, the progress is saved before it does.

    Raises:
        TrainingInterruptedError: `on_step` returned False.
        DataError, GraphFailedError: as the trainer's.
        StateError: the disk is failing.
    """
    started_s = monotonic()

    @functools.cache
    def basis() -> bytes:
        optimizer = before.optimizer or OptimizerState(0, ())
        arrays = (*dataset.training, start, *optimizer.vectors)
        return basis_of(task, (*keeping.setup, str(optimizer.steps)), arrays)

    saved = _begun(task, trainer, dataset, start, before, keeping, basis, on_step)
    epochs_done, _, optimizer_state, losses, earlier_ms, held_out, steps_done, partial = saved
    del saved  # its vectors are as large as the model

    def elapsed_ms() -> int:
        return earlier_ms + round((monotonic() - started_s) * 1000)

    def save(progress: Progress, parameters: Vector, losses: tuple[float, ...]) -> None:
        so_far = (progress.epochs, parameters, progress.optimizer, losses, elapsed_ms(), held_out)
        checkpoint = Checkpoint(*so_far, progress.steps, progress.partial)
        keeping.saved.save(basis(), checkpoint)
        reach("client: progress saved")
        keeping.on_saved(progress.epochs)

    def enough() -> bool:
        longest_ms = task.plan.training_ms_max
        return longest_ms is not None and elapsed_ms() >= longest_ms

    reach("client: training started")
    if task.kind == "evaluate":
        return Outcome(None, elapsed_ms(), held_out)
    result = train(
        trainer,
        *dataset.training,
        task.plan,
        on_epoch=EpochSaver(trainer, task.plan.epochs, keeping.lost_ms_max, save, losses),
        on_step=on_step,
        enough=enough,
        paused=paused,
        start_epoch=epochs_done,
        start_step=steps_done,
        partial=partial,
        optimizer_state=optimizer_state,
        reference=start,
    )
    return Outcome(result._replace(losses=losses + result.losses), elapsed_ms(), held_out)


def _begun(
    task: Task,
    trainer: Trainer,
    dataset: LocalDataset,
    start: Vector,
    before: LocalState,
    keeping: Keeping,
    basis: Callable[[], bytes],
    on_step: OnStep,
) -> Checkpoint:
    """Where to go on: where the last life was, or at the beginning, with the model judged."""
    saved = keeping.saved.load(basis) if task.kind == "train" else None
    if saved is None:
        trainer.set_parameters(start)
        held_out = None
        if dataset.held_out is not None:
            judged = evaluate(trainer, *dataset.held_out, on_batch=lambda: on_step(0, 0.0))
            held_out = _reportable(judged)
        saved = Checkpoint(0, start, before.optimizer, (), 0, held_out)
    else:
        further = f" and {saved.steps} steps" if saved.steps else ""
        _log.info("round %d: goes on after epoch %d%s", task.round_id, saved.epochs, further)
        trainer.set_parameters(np.concatenate((saved.parameters, start[len(saved.parameters) :])))
    return saved


def _reportable(held_out: Metrics) -> Metrics | None:
    """The measures that a message can hold: neither NaN nor infinite. None without a loss."""
    measures = {}
    for name, measure in held_out.measures.items():
        if measure.reportable:
            measures[name] = measure
        else:
            _log.warning("the global model's held-out %s is %s", name, measure.sum)
    return Metrics(held_out.examples, measures) if "loss" in measures else None
