"""Trainers: one interface, one implementation per runtime, one contract suite over all of them.

A trainer owns a model on this device and changes it one optimizer step at a time. The loop over
epochs and batches is `edge_client.training.train`, the same for every trainer.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import BundleError
from fedtide.vectors import Vector


class GraphFailedError(BundleError):
    """A graph failed on a batch. The text is onnxruntime's and may quote values of the data."""


class Evaluation(NamedTuple):
    """Sums over examples, so that results of parts can be added and then divided."""

    examples: int
    loss_sum: float
    """Sum over examples of the mean-reduced loss: batch loss times batch size."""
    correct: int | None
    """Correct predictions of a classifier; None for regression."""


class Trainer(Protocol):
    """float32 parameters in manifest order; x and y as the manifest's `inputs` and `labels`."""

    def set_parameters(self, vector: Vector) -> None:
        """Replace the model by `vector`, float32[elements_count]. The array is copied.

        Raises:
            ValueError: another length or dtype.
        """

    def parameters(self) -> Vector:
        """A copy of the model as float32[elements_count]."""

    def step(self, x: NDArray[np.generic], y: NDArray[np.generic], learning_rate: float) -> float:
        """One optimizer step on the batch x[b, ...], y[b, ...]; the mean loss before the step."""

    def evaluate(self, x: NDArray[np.generic], y: NDArray[np.generic]) -> Evaluation:
        """Loss and, for classifiers, correct predictions of the current model on one batch."""

    def close(self) -> None:
        """Release the runtime's memory. The trainer must not be used afterwards."""
