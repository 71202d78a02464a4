"""Evaluation of a global model on the coordinator's own test set, by the bundle's own graph."""

from __future__ import annotations

import msgspec

from coordinator.config import EvaluationConfig
from fedtide.bundle import Bundle
from fedtide.dataset import load_dataset
from fedtide.evaluator import Evaluator, vector_values
from fedtide.measures import Metrics, add_up
from fedtide.vectors import Vector, whole_vector


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
        self._bundle = bundle
        self._examples = load_dataset(config.data, bundle.manifest).training
        self._batch_size = config.batch_size
        self._evaluator = Evaluator(bundle)

    def __len__(self) -> int:
        return len(self._examples.x)

    def evaluate(self, shared: Vector) -> Metrics:
        """Measures of a global model, float32[shared_count], over the whole set.

        What does not travel has the bundle's initial values: where devices keep parts of the
        model for themselves, only their held-out data tell how good it is there.

        Raises:
            BundleError: the evaluation graph failed.
        """
        model = vector_values(whole_vector(shared, self._bundle), self._bundle.manifest)
        x, y = self._examples
        parts = [slice(at, at + self._batch_size) for at in range(0, len(x), self._batch_size)]
        total = add_up(self._evaluator.evaluate(model, x[part], y[part]) for part in parts)
        measured = {name: value for name, value in total.measures.items() if value.reportable}
        return msgspec.structs.replace(total, measures=measured)
