"""One configuration of `fedtide client benchmark`, in a process of its own:
`python -m edge_client.benchmark BUNDLE RUNTIME THREADS BATCH_SIZE SECONDS`.

A fresh process, so that the peak of its memory is that of this configuration alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.child import Answer, answer
from edge_client.recorded_steps import read_recorded_steps
from edge_client.trainers import AnyArray
from edge_client.trainers.opening import open_trainer
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.runtime import import_onnxruntime
from fedtide.safetensors import read_initial_model

_WARM_UP_STEPS = 2
_STEPS_MIN = 3
_LEARNING_RATE = 1e-3
"""Small, so that random data do not drive the model to values that are slow or no numbers."""


def measure(folder: Path, runtime: Any, threads: int, batch_size: int, seconds: float) -> Answer:
    """Train on random data for `seconds`; see docs/bundle.md for the fields.

    Raises:
        FedtideError: the bundle or the runtime cannot be used.
    """
    bundle = open_bundle_dir(folder)
    x, y = random_batch(bundle, batch_size)
    vector = read_initial_model(bundle)
    import_onnxruntime()
    before = resident_bytes("VmRSS")
    started = time.perf_counter()
    trainer = open_trainer(bundle, runtime, threads)
    load_s = time.perf_counter() - started
    trainer.set_parameters(vector)
    for _ in range(_WARM_UP_STEPS):
        trainer.step(x, y, _LEARNING_RATE, seed=0)
    times: list[float] = []
    started = last = time.perf_counter()
    while last - started < seconds or len(times) < _STEPS_MIN:
        trainer.step(x, y, _LEARNING_RATE, seed=len(times))
        now = time.perf_counter()
        times.append(now - last)
        last = now
    median = float(np.median(times))
    costs = bundle.manifest.estimates
    return {
        "steps": len(times),
        "median_s": median,
        "p90_s": float(np.quantile(times, 0.9)),
        "examples_per_s": batch_size / median,
        "flops_per_s": None if costs is None else batch_size * costs.flops_per_example / median,
        "load_s": load_s,
        "resident_before_bytes": before,
        "resident_peak_bytes": resident_bytes("VmHWM"),
        "model_bytes": vector.nbytes,
    }


def random_batch(bundle: Bundle, batch_size: int) -> tuple[AnyArray, AnyArray]:
    """x and y that fit the bundle's manifest.

    Integers are at most the largest that the export tried, which every column takes, and labels
    are those of the export, for only the user's own loss may know which are right.
    """
    rng = np.random.default_rng(0)
    array = bundle.manifest.inputs
    recorded = read_recorded_steps(bundle)
    labels = np.concatenate([y for _, y in recorded.batches])
    y = labels[rng.integers(0, len(labels), batch_size)]
    shape = (batch_size, *array.shape)
    if array.dtype == "float32":
        return rng.standard_normal(shape, np.float32), y
    largest = max(int(x.max()) for x, _ in recorded.batches)
    return rng.integers(0, largest + 1, shape, np.int64), y


def resident_bytes(field: str) -> int | None:
    """VmRSS (now) or VmHWM (the peak) of this process; None where Linux does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def main(arguments: list[str]) -> int:
    """Answer with the measurements."""
    folder, runtime, threads, batch_size, seconds = arguments

    return answer(
        lambda: measure(Path(folder), runtime, int(threads), int(batch_size), float(seconds))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
