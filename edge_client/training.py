"""The loop over epochs and batches: ClientUpdate(k, w) of McMahan et al. 2016, Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import Column, FileRows
from edge_client.optimizers import Optimizer, OptimizerState
from edge_client.trainers import AnyArray, Trainer
from edge_client.trainers.batches import has_labels
from fedtide.errors import DataError
from fedtide.measures import Measure, Metrics, add_up
from fedtide.plan import Plan
from fedtide.vectors import Vector

NOTHING_YET = Measure(0.0, 0.0)


class Progress(NamedTuple):
    """How far training has come, at the end of an epoch."""

    epochs: int
    """Done, those before `start_epoch` included."""
    loss: float
    """Mean loss of the epoch, measured as its batches were trained."""
    optimizer: OptimizerState
    """Live: copy what is to be kept."""
    steps: int = 0
    """Made of the epoch that follows, if training pauses within it."""
    partial: Measure = NOTHING_YET
    """Of the loss of these steps."""


OnStep = Callable[[int, float], bool | None]
OnEpoch = Callable[[Progress], None]


class TrainResult(NamedTuple):
    """What a round's local training learned."""

    delta: Vector
    """float32[shared_count], new - old of what travels."""
    local: Vector
    """float32, the new values of `manifest.local`: what stays on the device."""
    optimizer: OptimizerState
    """After the last step."""
    examples: int
    """Local examples, n_k: the weight in the average."""
    losses: tuple[float, ...]
    """Mean loss of each epoch run here, measured as its batches were trained."""
    steps: int
    """Optimizer steps of all epochs, those before `start_epoch` included."""


class TrainingInterruptedError(Exception):
    """`on_step` asked to stop. What was learned so far is in the trainer and is not a result."""


def epoch_order(seed: int, epoch: int, examples: int) -> NDArray[np.int64]:
    """int64[examples], the order of the examples in one epoch.

    A function of its arguments only, on every machine and numpy version: it sorts raw Philox
    numbers, whose stream is fixed, where `Generator.permutation` may change between versions.
    """
    numbers = np.random.Philox(key=[seed, epoch]).random_raw(examples)
    return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)


def dropout_seeds(seed: int, epoch: int, count: int) -> list[int]:
    """Seeds in [0, 2^63) for the graph's runs in one epoch: one for each part of each batch.

    A function of its arguments only, so that training which goes on after a restart draws the
    same numbers. The key's highest bit keeps them apart from `epoch_order`.
    """
    numbers = np.random.Philox(key=[seed, epoch | 1 << 63]).random_raw(count)
    return [int(number) >> 1 for number in numbers]


def steps_per_epoch(plan: Plan, examples: int) -> int:
    """Batches that cover all examples, the last one possibly smaller."""
    return 1 if plan.batch_size == "all" else -(-examples // plan.batch_size)


def train(
    trainer: Trainer,
    x: Column,
    y: Column,
    plan: Plan,
    *,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    enough: Callable[[], bool] | None = None,
    paused: Callable[[], bool] | None = None,
    start_epoch: int = 0,
    start_step: int = 0,
    partial: Measure = NOTHING_YET,
    optimizer_state: OptimizerState | None = None,
    reference: Vector | None = None,
) -> TrainResult:
    """Train the trainer's current model on x[n, ...] and y[n, ...] as `plan` says.

    `on_step(steps, loss)` follows every step: it may sleep, to share the processor, and returns
    False to stop. `enough()` follows every step once there is a loss; True ends training, and what
    was learned is the result. `on_epoch(progress)` follows every epoch that did not end so: time to
    save `trainer.parameters()` and the optimizer's state; and it follows a step after which
    `paused()` is true: `on_step`, which comes next, will wait for long. To go on after a restart,
    give the trainer what was saved, the number of epochs done as `start_epoch`, the steps of the
    next one as `start_step` with their `partial` loss, the optimizer's state, and the round's
    initial model as `reference` (default: the model that the trainer has now).

    Raises:
        TrainingInterruptedError: `on_step` returned False.
        DataError: the data do not fit the model, or there are none.
        ValueError: the optimizer's state is another optimizer's, or of another model.
    """
    examples = len(x)
    if not examples or examples != len(y):
        raise DataError(f"there are {examples:,} inputs and {len(y):,} labels to train on")
    trained = trainer.manifest.trained
    old = trainer.parameters() if reference is None else reference
    optimizer = Optimizer(
        plan,
        trained.stop - trained.start,
        anchor=old[trained.start : min(trained.stop, trainer.manifest.shared_count)],
        state=optimizer_state,
    )
    stepper = _Stepper(trainer, plan, optimizer, x, y)
    steps_max = plan.steps_for(examples)
    steps = min(start_epoch * steps_per_epoch(plan, examples) + start_step, steps_max)
    losses: list[float] = []
    ended = False
    for epoch in range(start_epoch, plan.epochs):
        if ended or (steps == steps_max and not start_step):
            break
        done, total = start_step, partial
        start_step, partial = 0, NOTHING_YET
        for loss in stepper.epoch(epoch, steps_max - steps, done):
            steps, done = steps + 1, done + 1
            total = Measure(total.sum + loss.sum, total.weight + loss.weight)
            if paused is not None and on_epoch is not None and paused():
                on_epoch(Progress(epoch, 0.0, optimizer.state, done, total))
            if on_step is not None and on_step(steps, loss.mean or 0.0) is False:
                raise TrainingInterruptedError(f"stopped after {steps} of {steps_max} steps")
            ended = enough is not None and total.weight > 0 and enough()
            if ended:
                break
        if total.mean is None:
            raise DataError("no example has a label that counts")
        losses.append(total.mean)
        if on_epoch is not None and not ended:
            on_epoch(Progress(epoch + 1, losses[-1], optimizer.state))

    return TrainResult(*_learned(trainer, old), optimizer.state, examples, tuple(losses), steps)


def _learned(trainer: Trainer, old: Vector) -> tuple[Vector, Vector]:
    """What travels, new - old, and the new values of what stays here."""
    manifest, new = trainer.manifest, trainer.parameters()
    shared = slice(0, manifest.shared_count)
    local = new[manifest.local].copy()
    delta = new[shared]
    delta -= old[shared]
    return delta, local


class _Stepper:
    """Optimizer steps, one for each batch of an epoch."""

    def __init__(
        self, trainer: Trainer, plan: Plan, optimizer: Optimizer, x: Column, y: Column
    ) -> None:
        self._trainer, self._plan, self._optimizer = trainer, plan, optimizer
        # `take` would copy all of what is not contiguous, for every batch.
        self._x, self._y = (
            a if isinstance(a, FileRows) else np.ascontiguousarray(a) for a in (x, y)
        )
        self._batch = len(x) if plan.batch_size == "all" else min(plan.batch_size, len(x))
        at_once = plan.examples_at_once if trainer.manifest.additive else self._batch
        self._parts = -(-self._batch // at_once)
        self._plain = self._parts == 1 and plan.is_plain_sgd
        # One room for all batches: a trainer that sees the same arrays again need not look anew.
        largest = -(-self._batch // self._parts)
        self._room = tuple(np.empty((largest, *a.shape[1:]), a.dtype) for a in (x, y))

    def epoch(self, epoch: int, steps_max: int, first: int) -> Iterator[Measure]:
        """Train one epoch from its batch `first`, at most `steps_max` batches of it; the loss
        before each step."""
        examples, plan = len(self._x), self._plan
        order = epoch_order(plan.seed, epoch, examples)
        starts = range(0, examples, self._batch)[: first + steps_max]
        seeds = [0] * (len(starts) * self._parts)
        if self._trainer.manifest.random:
            seeds = dropout_seeds(plan.seed, epoch, len(seeds))
        for step in range(first, len(starts)):
            chosen = order[starts[step] : starts[step] + self._batch]
            yield self._step(chosen, seeds[step * self._parts : (step + 1) * self._parts])

    def _step(self, chosen: NDArray[np.int64], seeds: list[int]) -> Measure:
        trainer = self._trainer
        if not has_labels(trainer.manifest, self._y, chosen):
            return Measure(0.0, 0.0)  # a mean over nothing: there is no gradient
        if len(chosen) == 1 < self._batch and not trainer.manifest.additive:
            return Measure(0.0, 0.0)  # a rest of one has no variance; PyTorch refuses it, too
        if self._plain:
            return trainer.step(*self._gathered(chosen), self._plan.learning_rate, seeds[0])
        total = Measure(0.0, 0.0)
        for part, seed in zip(np.array_split(chosen, self._parts), seeds, strict=True):
            if not len(part):
                continue  # the last batch may be smaller than the number of parts
            loss = trainer.accumulate(*self._gathered(part), seed)
            total = Measure(total.sum + loss.sum, total.weight + loss.weight)
        if total.weight > 0:
            trainer.change(lambda weights, g: self._optimizer.step(weights, g, total.weight))
        else:
            trainer.change(lambda *_: None)  # all of it weighs nothing
        return total

    def _gathered(self, chosen: NDArray[np.int64]) -> tuple[AnyArray, AnyArray]:
        """The chosen examples, until the next call."""
        x, y = self._room
        if len(chosen) < len(x):
            x, y = x[: len(chosen)], y[: len(chosen)]
        # Every index is in range; "clip" says so, and only then numpy writes without a detour.
        self._x.take(chosen, axis=0, out=x, mode="clip")
        self._y.take(chosen, axis=0, out=y, mode="clip")
        return x, y


def evaluate(
    trainer: Trainer,
    x: Column,
    y: Column,
    *,
    batch_size: int = 32,
    on_batch: Callable[[], bool | None] | None = None,
) -> Metrics:
    """Evaluate the trainer's current model on x[n, ...] and y[n, ...], in batches.

    `on_batch()` follows every batch: it may sleep, and returns False to stop.

    Raises:
        TrainingInterruptedError: `on_batch` returned False.
        DataError: the data do not fit the model, or there are none.
    """
    if not len(x) or len(x) != len(y):
        raise DataError(f"there are {len(x):,} inputs and {len(y):,} labels to evaluate on")

    def batches() -> Iterator[Metrics]:
        for start in range(0, len(x), batch_size):
            yield trainer.evaluate(x[start : start + batch_size], y[start : start + batch_size])
            if on_batch is not None and on_batch() is False:
                raise TrainingInterruptedError("stopped while the model was judged")

    return add_up(batches())
