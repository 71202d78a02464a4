"""Figure 1: averaging two models from a shared and from two independent initialisations.

McMahan et al. 2016, section 2: two MNIST 2NN models are trained on disjoint IID samples of 600
examples each, 240 updates of SGD at batch 50 and rate 0.1, then mixed as theta w + (1 - theta) w'
for 50 values of theta in [-0.2, 1.2]. From independent initialisations the average is a bad model;
from a shared one its loss on all training data is lower than that of the better parent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from coordinator.plans import round_plan
from fedtide.bundle import Bundle
from fedtide.dataset import Examples
from fedtide.errors import FedtideError
from fedtide.measures import add_up
from fedtide.plan import Plan
from fedtide.safetensors import read_initial_model
from fedtide.vectors import Vector
from repro.experiment import Experiment
from repro.setting import devices_of
from simulator.learning.bundles import named_bundle
from simulator.learning.datasets import TrainingData, open_data_set
from simulator.learning.learner import Learner, Train
from simulator.learning.partitions import philox
from simulator.learning.workers import Task, Workers, open_workers

THETAS_COUNT, THETA_MIN, THETA_MAX = 50, -0.2, 1.2
Told = Callable[[str], None]


class Side(Struct, frozen=True, forbid_unknown_fields=True):
    """One half of the figure: losses on all training data."""

    first_parent: float
    second_parent: float
    average: float
    """Of theta = 1/2."""
    thetas: tuple[float, ...]
    losses: tuple[float, ...]


class Figure(Struct, frozen=True, forbid_unknown_fields=True):
    """Both halves, and what they were made with."""

    experiment: Experiment
    independent: Side
    shared: Side

    @property
    def reproduced(self) -> bool:
        """Whether the paper's finding is there."""
        shared, independent = self.shared, self.independent
        better = shared.average < min(shared.first_parent, shared.second_parent)
        worse = independent.average > max(independent.first_parent, independent.second_parent)
        return better and worse

    def verdict(self) -> str:
        """One line, with the losses that decide."""
        shared, independent = self.shared, self.independent
        best = min(shared.first_parent, shared.second_parent)
        worst = max(independent.first_parent, independent.second_parent)
        word = "reproduced" if self.reproduced else "NOT reproduced"
        return (
            f"figure 1: {word}: shared init: average {shared.average:.3f} "
            f"{_sign(shared.average, best)} best parent {best:.3f}; independent: average "
            f"{independent.average:.3f} {_sign(independent.average, worst)} worst parent "
            f"{worst:.3f}"
        )


def _sign(left: float, right: float) -> str:
    return "<" if left < right else ">" if left > right else "="


SETTING = Experiment(
    model="mnist_2nn",
    data="mnist",
    partition="iid",
    devices=100,  # of 600 examples; the first two of them train
    fraction=0.02,
    epochs=20,
    batch_size=50,
    target=1.0,
    rounds_max=1,
    learning_rate=0.1,
)


class _OnTrainingSet:
    """A data set that is evaluated on what it trains on."""

    def __init__(self, data: TrainingData) -> None:
        self._data = data
        self.name, self.about = data.name, data.about
        self.labels, self.groups = data.labels, data.groups
        self.examples = data.examples
        self.test: Examples = data.examples(np.arange(len(data)))

    def __len__(self) -> int:
        return len(self._data)


class _Mix(NamedTuple):
    theta: float
    first: Vector
    second: Vector

    def vector(self) -> Vector:
        """theta w + (1 - theta) w'."""
        mixed: Vector = self.theta * self.first + np.float32(1 - self.theta) * self.second
        return mixed.astype(np.float32, copy=False)


def make_figure(
    experiment: Experiment, data_dir: Path | None, workers_count: int, told: Told = lambda _: None
) -> Figure:
    """Train the four models and measure all mixtures on all training examples.

    Raises:
        FedtideError: of data, model or a worker, or what was learned is not finite.
    """
    data = _OnTrainingSet(open_data_set(experiment.data, data_dir))
    bundle = named_bundle(experiment.model)
    learner = Learner(bundle, data, devices_of(experiment, data))
    shared = read_initial_model(bundle)[: bundle.manifest.shared_count]
    other = another_initial_model(bundle, experiment.seed)
    told(f"{data.about}: measuring {2 * (THETAS_COUNT + 3)} models on all of it")
    workers = open_workers(learner, workers_count)
    try:
        sides = []
        for name, second in (("independent", other), ("shared", shared)):
            parents = _train(experiment, workers, (shared, second))
            sides.append(_measure(workers, learner.test_batches, parents))
            told(
                f"{name} initialisation: parents {sides[-1].first_parent:.4f} and "
                f"{sides[-1].second_parent:.4f}, their average {sides[-1].average:.4f}"
            )
    finally:
        workers.close()
    return Figure(experiment, *sides)


def another_initial_model(bundle: Bundle, seed: int) -> Vector:
    """float32[shared_count], drawn as torch.nn.Linear and Conv2d draw theirs.

    Weight and bias of a layer are uniform in +-1 / sqrt(fan_in), where fan_in is the product of
    the weight's shape but for its first axis (torch 2.13, `reset_parameters`). The numbers are
    not torch's: a Philox generator's, fixed for each seed.
    """
    generator = philox("figure 1", "initial model", seed)
    vector: Vector = np.empty(bundle.manifest.shared_count, np.float32)
    bound = 1.0
    for tensor in bundle.manifest.tensors:
        if not tensor.shared:
            continue
        if len(tensor.shape) > 1:
            bound = 1 / math.sqrt(math.prod(tensor.shape[1:]))
        count = math.prod(tensor.shape)
        uniform = (generator.random_raw(count) >> np.uint64(11)) / 2.0**53
        vector[tensor.offset : tensor.offset + count] = bound * (2 * uniform - 1)
    return vector


def _train(
    experiment: Experiment, workers: Workers, initial: tuple[Vector, Vector]
) -> tuple[Vector, Vector]:
    """Devices 0 and 1, each from its own initial model."""
    plan: Plan = round_plan(experiment.plan(), experiment.rounds(), 1, 0)
    tasks = [Task(Train(device, plan), model) for device, model in enumerate(initial)]
    trained = [
        model + done.vector for model, done in zip(initial, workers.train(tasks), strict=True)
    ]
    if not all(np.isfinite(vector).all() for vector in trained):
        raise FedtideError("the parents of figure 1 are not finite", hint="lower the learning rate")
    return trained[0], trained[1]


def _measure(workers: Workers, batches: int, parents: tuple[Vector, Vector]) -> Side:
    thetas = [float(theta) for theta in np.linspace(THETA_MIN, THETA_MAX, THETAS_COUNT)]
    losses = _losses(
        workers, batches, [_Mix(theta, *parents) for theta in (1.0, 0.0, 0.5, *thetas)]
    )
    return Side(losses[0], losses[1], losses[2], tuple(thetas), tuple(losses[3:]))


def _losses(workers: Workers, batches: int, mixes: Sequence[_Mix]) -> list[float]:
    """The mean loss of each; the next is sent before the last is waited for."""
    losses: list[float] = []
    pending = workers.begin_evaluation(mixes[0].vector(), batches)
    for following in (*mixes[1:], None):
        before = pending
        if following is not None:
            pending = workers.begin_evaluation(following.vector(), batches)
        parts = [part for measured in before.result() for part in measured.parts]
        loss = add_up(parts).loss
        losses.append(math.inf if loss is None else loss)
    return losses
