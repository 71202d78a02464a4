"""Trainers: one interface, one implementation per runtime, one contract suite over all of them.

A trainer owns a model on this device and computes on one batch at a time. The loop over epochs and
batches is `edge_client.training.train`, the same for every trainer, and so are the optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedtide.manifest import Manifest
from fedtide.measures import Measure, Metrics
from fedtide.vectors import Vector

AnyArray = NDArray[np.generic]
Change = Callable[[Vector, Vector], None]
"""Called with the trained parameters and the accumulated gradient, both to be written to."""


class Trainer(Protocol):
    """float32 parameters in manifest order; x and y as the manifest's `inputs` and `labels`.

    A training step is either `step`, or some `accumulate` and one `change`.
    """

    manifest: Manifest

    def set_parameters(self, vector: Vector) -> None:
        """Replace the model by `vector`, float32[elements_count], which is copied.

        A gradient that was accumulated is forgotten.

        Raises:
            ValueError: another length or dtype.
        """

    def parameters(self) -> Vector:
        """A copy of the model as float32[elements_count]."""

    def step(self, x: AnyArray, y: AnyArray, learning_rate: float, seed: int = 0) -> Measure:
        """One step of plain SGD on the batch x[b, ...], y[b, ...]; its loss before the step.

        Statistics are updated. `seed` is that of dropout: the same seed gives the same bits.

        Raises:
            DataError: the batch does not fit the model.
            GraphFailedError: onnxruntime failed; the model is undefined until it is set anew.
        """

    def accumulate(self, x: AnyArray, y: AnyArray, seed: int = 0) -> Measure:
        """Add the gradient of the batch's sum of losses to what has been accumulated; its loss.

        Statistics are updated, parameters are not. Raises what `step` raises.
        """

    def change(self, function: Change) -> None:
        """Let `function` change float32[manifest.trained] by the accumulated gradient.

        Accumulation begins anew afterwards.
        """

    def evaluate(self, x: AnyArray, y: AnyArray) -> Metrics:
        """Measures of the current model on one batch. Raises what `step` raises."""

    def close(self) -> None:
        """Release the runtime's memory. The trainer must not be used afterwards."""
