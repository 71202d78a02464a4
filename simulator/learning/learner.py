"""One device's share of the learning: local training and evaluation, in whatever process.

The production's own pieces: `edge_client.training.train` with the portable trainer, the bundle's
evaluation graph. A learner keeps nothing between calls, so that the same call gives the same bits
in any process on any machine of one kind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edge_client.trainers.portable import PortableTrainer
from edge_client.training import train
from fedtide.bundle import Bundle, open_bundle
from fedtide.errors import ConfigError
from fedtide.evaluator import Evaluator, vector_values
from fedtide.manifest import MANIFEST_NAME
from fedtide.measures import Metrics
from fedtide.plan import Plan
from fedtide.vectors import Vector, whole_vector
from simulator.learning.datasets import TrainingData

BATCH_SIZE = 256
"""Of an evaluation, as the coordinator's by default: sums depend on it in their last bits."""


class Train(Struct, frozen=True, tag=True):
    """Train the data of a device as a plan says."""

    device: int
    plan: Plan


class Evaluate(Struct, frozen=True, tag=True):
    """Measure a model on some batches of the test set."""

    first_batch: Annotated[int, Meta(ge=0)]
    batches: Annotated[int, Meta(ge=1)]


class Learned(Struct, frozen=True):
    """What a device learned, but for the delta, which is where the model was."""

    examples: int
    """n_k."""
    steps: int
    finite: bool
    """Whether every value of the delta is a number."""
    losses: tuple[float, ...]
    """Of each epoch; empty where they are not finite."""
    seconds: float
    """How long the training took."""


class Measured(Struct, frozen=True):
    """Of each batch."""

    parts: tuple[Metrics, ...]


def check_simulable(bundle: Bundle, plan: Plan) -> None:
    """Nothing, if all that devices learn travels.

    Raises:
        ConfigError: devices would keep something between rounds.
    """
    if bundle.manifest.rest is not None and bundle.manifest.local:
        raise ConfigError(
            f"the model {bundle.manifest.name!r} keeps a part of itself on each device",
            hint="a simulation takes models that travel as a whole",
        )
    if plan.optimizer_state == "kept":
        raise ConfigError(
            'plan.optimizer_state is "kept"; simulated devices keep nothing between rounds',
            hint='use "fresh"',
        )


class Learner:
    """See the module. Graphs are loaded when first used: in the process that uses them."""

    def __init__(
        self, bundle: Bundle, data: TrainingData, parts: Sequence[NDArray[np.int64]]
    ) -> None:
        """`parts[k]`: indices of the examples of device k."""
        self.bundle = bundle
        self._data = data
        self._parts = parts
        self._trainer: PortableTrainer | None = None
        self._evaluator: Evaluator | None = None

    def portable(self) -> Learner:
        """This learner for other machines: with the bundle's files in memory, nothing opened."""
        names = (*self.bundle.manifest.files, MANIFEST_NAME)
        contents = {name: self.bundle.fetch(name) for name in names}
        bundle = open_bundle(contents[MANIFEST_NAME], contents.__getitem__)
        return Learner(bundle, self._data, self._parts)

    @property
    def shared_count(self) -> int:
        """Length of what travels."""
        return self.bundle.manifest.shared_count

    @property
    def test_batches(self) -> int:
        """Of the test set."""
        return -(-len(self._data.test.x) // BATCH_SIZE)

    def train(self, work: Train, vector: Vector) -> Learned:
        """Train from the model `vector`, float32[shared_count], and write the delta into it.

        Raises:
            DataError: the data do not fit the model.
            GraphFailedError: onnxruntime failed.
        """
        started_s = time.perf_counter()
        if self._trainer is None:
            self._trainer = PortableTrainer(self.bundle)
        examples = self._data.examples(self._parts[work.device], work.plan.seed)
        self._trainer.set_parameters(whole_vector(vector, self.bundle))
        result = train(self._trainer, *examples, work.plan)
        vector[:] = result.delta
        finite = bool(np.isfinite(result.delta).all() and np.isfinite(result.losses).all())
        losses = result.losses if finite else ()
        seconds = time.perf_counter() - started_s
        return Learned(result.examples, result.steps, finite, losses, seconds)

    def evaluate(self, work: Evaluate, vector: Vector) -> Measured:
        """Measure the model `vector`, float32[shared_count], batch by batch.

        Raises:
            GraphFailedError: onnxruntime failed.
        """
        if self._evaluator is None:
            self._evaluator = Evaluator(self.bundle)
        model = vector_values(whole_vector(vector, self.bundle), self.bundle.manifest)
        x, y = self._data.test
        measured = []
        for batch in range(work.first_batch, work.first_batch + work.batches):
            part = slice(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)
            metrics = self._evaluator.evaluate(model, x[part], y[part])
            kept = {name: value for name, value in metrics.measures.items() if value.reportable}
            measured.append(Metrics(metrics.examples, kept))
        return Measured(tuple(measured))
