"""The loop over epochs and batches: ClientUpdate(k, w) of McMahan et al. 2016, Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_client.trainers import Evaluation, Trainer
from fedtide.errors import DataError
from fedtide.plan import Plan
from fedtide.vectors import Vector

AnyArray = NDArray[np.generic]
OnStep = Callable[[int, float], bool | None]
OnEpoch = Callable[[int, float], None]


class TrainResult(NamedTuple):
    """What a round's local training learned."""

    delta: Vector
    """float32[elements_count], new - old."""
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


def steps_per_epoch(plan: Plan, examples: int) -> int:
    """Batches that cover all examples, the last one possibly smaller."""
    return 1 if plan.batch_size == "all" else -(-examples // plan.batch_size)


def train(
    trainer: Trainer,
    x: AnyArray,
    y: AnyArray,
    plan: Plan,
    *,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    start_epoch: int = 0,
    reference: Vector | None = None,
) -> TrainResult:
    """Train the trainer's current model on x[n, ...] and y[n, ...] as `plan` says.

    `on_step(steps, loss)` follows every step: it may sleep, to share the processor, and returns
    False to stop. `on_epoch(epochs_done, mean_loss)` follows every epoch: time to save
    `trainer.parameters()`. To go on after a restart, give the trainer what was saved, the number
    of epochs done as `start_epoch`, and the round's initial model as `reference` (default: the
    model that the trainer has now).

    Raises:
        TrainingInterruptedError: `on_step` returned False.
        DataError: the data do not fit the model, or there are none.
    """
    examples = len(x)
    if not examples or examples != len(y):
        raise DataError(f"there are {examples:,} inputs and {len(y):,} labels to train on")
    old = trainer.parameters() if reference is None else reference
    batch = examples if plan.batch_size == "all" else plan.batch_size
    steps = start_epoch * steps_per_epoch(plan, examples)
    steps_max = plan.epochs * steps_per_epoch(plan, examples)
    if plan.steps_max is not None:
        steps_max = min(steps_max, plan.steps_max)
    steps = min(steps, steps_max)
    losses: list[float] = []
    for epoch in range(start_epoch, plan.epochs):
        if steps == steps_max:
            break
        order = epoch_order(plan.seed, epoch, examples)
        loss_sum, seen = 0.0, 0
        for start in range(0, examples, batch):
            if steps == steps_max:
                break
            chosen = order[start : start + batch]
            loss = trainer.step(x[chosen], y[chosen], plan.learning_rate)
            steps += 1
            loss_sum += loss * len(chosen)
            seen += len(chosen)
            if on_step is not None and on_step(steps, loss) is False:
                raise TrainingInterruptedError(f"stopped after {steps} of {steps_max} steps")
        losses.append(loss_sum / seen)
        if on_epoch is not None:
            on_epoch(epoch + 1, losses[-1])
    delta = trainer.parameters()
    delta -= old
    return TrainResult(delta, examples, tuple(losses), steps)


def evaluate(trainer: Trainer, x: AnyArray, y: AnyArray, *, batch_size: int = 32) -> Evaluation:
    """Evaluate the trainer's current model on x[n, ...] and y[n, ...], in batches.

    Raises:
        DataError: the data do not fit the model, or there are none.
    """
    if not len(x) or len(x) != len(y):
        raise DataError(f"there are {len(x):,} inputs and {len(y):,} labels to evaluate on")
    parts = [
        trainer.evaluate(x[start : start + batch_size], y[start : start + batch_size])
        for start in range(0, len(x), batch_size)
    ]
    correct = [part.correct for part in parts if part.correct is not None]
    return Evaluation(
        examples=sum(part.examples for part in parts),
        loss_sum=sum(part.loss_sum for part in parts),
        correct=sum(correct) if correct else None,
    )
