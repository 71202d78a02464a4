"""About how long a row takes: for people who choose what to run."""

from __future__ import annotations

from typing import NamedTuple

from coordinator.cohort import wanted_count
from repro.experiment import Experiment
from repro.rows import Row


class _Cost(NamedTuple):
    """Milliseconds of one x86-64 core."""

    train_ms: float
    """An example, forward and backward."""
    test_ms: float
    """An example of the test set."""
    examples: int
    test_examples: int


_COSTS = {
    "mnist_2nn": _Cost(0.022, 0.003, 60_000, 10_000),
    "mnist_cnn": _Cost(0.99, 0.33, 60_000, 10_000),
    "char_lstm": _Cost(4.1, 1.3, 85_443, 21_975),
    # These two are scaled from the others by their operations.
    "cifar_cnn": _Cost(1.5, 0.5, 50_000, 10_000),
    "word_lstm": _Cost(3.0, 1.0, 76_000, 19_000),
}


def hours_expected(row: Row) -> float | None:
    """Core-hours of one learning rate for as many rounds as the paper took; None: not known."""
    experiment = row.experiment
    cost = _COSTS.get(experiment.model)
    if cost is None:
        return None
    examples = cost.examples * _share(experiment) * experiment.epochs
    test_ms = cost.test_ms * cost.test_examples / experiment.evaluate_every
    return row.paper_rounds * (examples * cost.train_ms + test_ms) / 3.6e6


def _share(experiment: Experiment) -> float:
    """Of all devices, in a round."""
    return wanted_count(experiment.rounds(), experiment.devices) / experiment.devices
