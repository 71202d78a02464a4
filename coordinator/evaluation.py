"""Evaluation of a global model on the coordinator's own test set, by the bundle's own graph."""

from __future__ import annotations

import numpy as np

from coordinator.config import EvaluationConfig
from fedtide.bundle import Bundle
from fedtide.dataset import load_dataset
from fedtide.errors import BundleError
from fedtide.manifest import INPUT_PREFIX
from fedtide.messages import Metrics
from fedtide.runtime import load_session
from fedtide.vectors import Vector, split_vector


class TestSet:
    """The test set, loaded and checked once."""

    __test__ = False

    def __init__(self, config: EvaluationConfig, bundle: Bundle) -> None:
        """Load it.

        Raises:
            DataError: the data do not fit the model.
            BundleError: the evaluation graph is refused.
        """
        assert config.data is not None
        self._manifest = bundle.manifest
        self._examples = load_dataset(config.data, bundle.manifest).training
        self._batch_size = config.batch_size
        self._session = load_session(bundle.read(bundle.manifest.runtimes.portable.evaluate))

    def __len__(self) -> int:
        return len(self._examples.x)

    def evaluate(self, model: Vector) -> Metrics:
        """Loss and, for classifiers, correct predictions of a flat model over the whole set."""
        tensors = split_vector(model, self._manifest)
        feeds: dict[str, object] = {INPUT_PREFIX + name: view for name, view in tensors.items()}
        loss_sum, correct = 0.0, 0
        x, y = self._examples
        for start in range(0, len(x), self._batch_size):
            part = slice(start, start + self._batch_size)
            feeds["x"], feeds["y"] = x[part], y[part]
            try:
                loss, *counts = self._session.run(None, feeds)
            except Exception as exc:  # onnxruntime's errors share no base class
                raise BundleError(f"the evaluation graph failed: {exc}") from exc
            loss_sum += float(loss) * len(x[part])
            correct += int(np.sum(counts[0])) if counts else 0
        classifier = self._manifest.classes is not None
        return Metrics(len(x), loss_sum, correct if classifier else None)
