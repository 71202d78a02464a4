"""What the federation is measured against: the same model, trained where all the data is, and on
each device alone. `python -m demo.baselines --bundle DIR --data DIR --out FILE`. It trains with
the device's trainer and the federation's initial model, so that only the data differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from edge_client.trainers import Trainer
from edge_client.trainers.opening import open_trainer
from edge_client.training import evaluate, train
from fedtide.bundle import open_bundle_dir
from fedtide.dataset import Examples
from fedtide.plan import Plan
from fedtide.safetensors import read_initial_model
from fedtide.vectors import Vector

CENTRAL = Plan(epochs=60, batch_size=32, learning_rate=0.02)
"""Enough: accuracy on the test set is flat from about 20 epochs on."""
ALONE = Plan(epochs=60, batch_size=32, learning_rate=0.02)


def main() -> int:
    """Train, and write the accuracies as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--bundle", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parsed = parser.parse_args()
    if hasattr(os, "nice"):
        os.nice(19)  # the federation that runs beside us comes first
    bundle = open_bundle_dir(parsed.bundle)
    initial = read_initial_model(bundle)
    trainer = open_trainer(bundle, "portable")
    test = _load(parsed.data / "test.npz")
    devices = {path.stem: _load(path) for path in sorted(parsed.data.glob("device-*.npz"))}
    pooled = Examples(
        np.concatenate([part.x for part in devices.values()]),
        np.concatenate([part.y for part in devices.values()]),
    )
    alone = {name: _accuracy(trainer, initial, part, test, ALONE) for name, part in devices.items()}
    central = _accuracy(trainer, initial, pooled, test, CENTRAL)
    trainer.close()
    parsed.out.write_text(json.dumps({"central": central, "alone": alone}))
    return 0


def _load(path: Path) -> Examples:
    with np.load(path, allow_pickle=False) as archive:
        return Examples(archive["x"], archive["y"])


def _accuracy(
    trainer: Trainer, initial: Vector, data: Examples, test: Examples, plan: Plan
) -> float:
    trainer.set_parameters(initial)
    train(trainer, data.x, data.y, plan)
    result = evaluate(trainer, test.x, test.y)
    assert result.accuracy is not None
    return result.accuracy


if __name__ == "__main__":
    sys.exit(main())
