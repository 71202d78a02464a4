"""Whether a runtime of this machine computes what PyTorch did when the bundle was exported:
`python -m edge_client.verification BUNDLE RUNTIME THREADS`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from edge_client.child import Answer, answer
from edge_client.fingerprint import (
    MEASURE_ABSOLUTE,
    MEASURE_RELATIVE,
    Fingerprint,
    difference,
    errors,
    fingerprint,
    start_near,
)
from edge_client.recorded_steps import RecordedSteps, read_recorded_steps
from edge_client.trainers import Trainer
from edge_client.trainers.opening import Runtime, open_trainer
from fedtide.bundle import open_bundle_dir
from fedtide.manifest import Manifest
from fedtide.safetensors import read_initial_model
from fedtide.vectors import Vector


class Finding(NamedTuple):
    """How far something that a runtime computed is from PyTorch's."""

    error: float
    """Divided by the allowed error: more than 1 is wrong, infinite for NaN."""
    where: str
    """Such as `step 2 (batch of 3), tensor 'fc.weight'`."""


def judge(folder: Path, runtime: Runtime, threads: int) -> Answer:
    """`ratio` and `where` of the first wrong result, or of the worst if all are right; `steps`
    done, and `seconds` taken.

    Raises:
        FedtideError: the bundle or the runtime cannot be used.
    """
    bundle = open_bundle_dir(folder)
    recorded, initial = read_recorded_steps(bundle), read_initial_model(bundle)
    started = time.monotonic()
    worst = Finding(0.0, "")
    trainer = open_trainer(bundle, runtime, threads)
    try:
        for finding in compare(trainer, recorded, initial):
            if not finding.error <= 1:  # NaN among them
                worst = finding
                break
            worst = max(worst, finding)
    finally:
        trainer.close()
    return {
        "ratio": worst.error,
        "where": worst.where,
        "steps": len(recorded.batches),
        "seconds": time.monotonic() - started,
    }


def compare(trainer: Trainer, recorded: RecordedSteps, initial: Vector) -> Iterator[Finding]:
    """Do the recorded steps from the initial model; for each result the worst of its errors."""
    manifest = trainer.manifest
    start = start_near(initial, manifest.tensors, recorded.noise_seed)
    trainer.set_parameters(start)
    for index, (x, y) in enumerate(recorded.batches):
        loss = trainer.step(x, y, recorded.learning_rate, seed=index)
        what = f"step {index + 1} (batch of {len(x)})"
        yield _measure(f"{what}, loss", loss, tuple(recorded.losses[index]))
        change = difference(trainer.parameters(), start)
        yield _tensors(what, manifest, change, recorded.changes[index])
    x, y = recorded.batches[0]
    measures = trainer.evaluate(x, y).measures
    for name, pair in zip(("loss", *manifest.metrics), recorded.evaluation, strict=True):
        yield _measure(f"evaluation, {name}", measures[name], tuple(pair))
    trainer.set_parameters(start)
    trainer.accumulate(x, y, seed=0)
    gradient = np.zeros_like(start)

    def read(_weights: Vector, accumulated: Vector) -> None:
        gradient[manifest.trained] = accumulated

    trainer.change(read)
    yield _tensors("the gradient of the first batch", manifest, gradient, recorded.gradient)


def _measure(where: str, actual: tuple[float, float], expected: tuple[float, ...]) -> Finding:
    ratios = [
        abs(ours - theirs) / (MEASURE_ABSOLUTE + MEASURE_RELATIVE * abs(theirs))
        for ours, theirs in zip(actual, expected, strict=True)
    ]
    return Finding(max(np.inf if np.isnan(ratio) else float(ratio) for ratio in ratios), where)


def _tensors(what: str, manifest: Manifest, change: Vector, expected: Fingerprint) -> Finding:
    ratios = errors(fingerprint(change, manifest.tensors), expected, manifest.tensors)
    worst = int(np.argmax(ratios))
    return Finding(float(ratios[worst]), f"{what}, tensor {manifest.tensors[worst].name!r}")


def main(arguments: list[str]) -> int:
    """Answer with the judgement."""
    folder, runtime, threads = arguments
    return answer(lambda: judge(Path(folder), cast("Runtime", runtime), int(threads)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
