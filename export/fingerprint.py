"""What PyTorch computed, as a bundle carries it for `fedtide verify`."""

from __future__ import annotations

import numpy as np

from edge_client.fingerprint import difference, fingerprint
from edge_client.recorded_steps import RecordedSteps
from export.inspection import Model
from export.verification import LEARNING_RATE, Expected


def record(model: Model, expected: Expected) -> RecordedSteps:
    """The steps of `expected`; whole vectors become fingerprints."""
    tensors = model.tensors
    return RecordedSteps(
        noise_seed=expected.seed,
        learning_rate=LEARNING_RATE,
        batches=tuple((x.numpy(), y.numpy()) for x, y in expected.batches),
        losses=np.array(expected.losses, np.float64),
        changes=tuple(
            fingerprint(difference(vector, expected.start), tensors) for vector in expected.vectors
        ),
        gradient=fingerprint(expected.gradient, tensors),
        evaluation=np.array(
            [expected.evaluation[name] for name in ("loss", *model.metrics)], np.float64
        ),
    )
