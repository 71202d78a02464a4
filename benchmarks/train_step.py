"""How fast is a training step, and how much memory does it take? PyTorch and both runtimes.

Each variant runs in a process of its own, with nothing imported that it does not need; they take
turns of about a second, in reversed order every other round. With one thread, time is processor
time, which neighbours on the machine disturb least; with more it is wall time. A ratio is the
median over rounds of variant / torch within the round. Before timing, all variants train the
same batches from the same weights, and their losses must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.measurement import RESULTS, gemm_flops_per_second, save
from benchmarks.train_step_worker import SEED
from export.command import load_function
from export.exporting import export_bundle
from export.inspection import inspect_model
from fedtide.bundle import open_bundle_dir

ROOT = RESULTS.parent
PAPER = {
    "mnist_2nn": "export.models.fedavg:mnist_2nn",
    "mnist_cnn": "export.models.fedavg:mnist_cnn",
    "cifar_cnn": "export.models.fedavg:cifar_cnn",
    "char_lstm": "export.models.fedavg:char_lstm",
    "word_lstm": "export.models.fedavg:word_lstm",
}
OTHERS = {
    "resnet": "examples.models.resnet:resnet",
    "transformer": "examples.models.text:text_classifier",
}
BATCHES = 8
TURN_S = 1.0


class Case(NamedTuple):
    """One line of the table."""

    model: str
    batch: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="the paper's models, batch 10, 1 thread"
    )
    parser.add_argument("--models", help="comma-separated; default: all")
    parser.add_argument("--batches", default="10,50")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn", type=float, default=TURN_S, help="seconds of a variant's turn")
    parser.add_argument(
        "--bundles", type=Path, help="keep bundles here, and use those that are there"
    )
    parser.add_argument("--no-ort-training", action="store_true")
    options = parser.parse_args()
    sources = PAPER if options.short else {**PAPER, **OTHERS}
    if options.models:
        sources = {name: {**PAPER, **OTHERS}[name] for name in options.models.split(",")}
    batches = [10] if options.short else [int(text) for text in options.batches.split(",")]
    threads = [1] if options.short else [int(text) for text in options.threads.split(",")]
    variants = ["torch", "portable"]
    if not options.short and not options.no_ort_training:
        variants.insert(1, "ort_training")
    peak = gemm_flops_per_second()
    figures: dict[str, Any] = {"gemm_gflops": round(peak / 1e9, 1)}
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = options.bundles or Path(name)
        for model, source in sources.items():
            bundle, seconds = bundle_of(model, source, folder, "ort_training" in variants)
            for case in (Case(model, b, t) for t in threads for b in batches):
                key = f"{model} batch {case.batch} threads {case.threads}"
                figures[key], samples[key] = measure(
                    case, source, bundle, variants, options.rounds, options.turn, Path(name)
                )
                estimates = open_bundle_dir(bundle).manifest.estimates
                flops = case.batch * (0 if estimates is None else estimates.flops_per_example)
                figures[key]["limit_ms"] = round(1e3 * flops / peak, 3)
                figures[key]["export_s"] = seconds
                print(json.dumps({key: figures[key]}), file=sys.stderr, flush=True)
    ratios = {
        case.split()[0]: entry["portable_ratio"]
        for case, entry in figures.items()
        if isinstance(entry, dict) and case.endswith(" batch 10 threads 1")
    }
    figures["geometric_mean"] = round(statistics.geometric_mean(ratios.values()), 3)
    save("train_step_short" if options.short else "train_step", figures, samples)
    print(json.dumps(ratios))


def bundle_of(model: str, source: str, folder: Path, ort_training: bool) -> tuple[Path, float]:
    """The bundle's directory, and the seconds that its export took (0 if it was there)."""
    bundle = folder / model
    if (bundle / "manifest.json").is_file():
        return bundle, 0.0
    started = time.monotonic()
    function, name = load_function(source)
    torch.manual_seed(SEED)
    export_bundle(function(), bundle, name=name, ort_training=ort_training)
    return bundle, round(time.monotonic() - started, 1)


def measure(
    case: Case,
    source: str,
    bundle: Path,
    variants: Sequence[str],
    rounds: int,
    turn_s: float,
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and raw samples of one case."""
    batches = folder / f"{case.model}-{case.batch}.npz"
    write_batches(source, case.batch, batches)
    offered = open_bundle_dir(bundle).manifest.runtimes
    chosen = [v for v in variants if v != "ort_training" or offered.ort_training is not None]
    workers = {
        v: Worker(v, source if v == "torch" else str(bundle), batches, case.threads) for v in chosen
    }
    try:
        check_losses({v: worker.run(2 * BATCHES) for v, worker in workers.items()})
        clock = "processor_s" if case.threads == 1 else "wall_s"
        steps = {}
        for v, worker in workers.items():
            worker.run(3)
            steps[v] = max(3, round(10 * turn_s / worker.run(10)["wall_s"]))
        turns: dict[str, list[dict[str, float]]] = {v: [] for v in chosen}
        for index in range(rounds):
            for v in chosen if index % 2 == 0 else reversed(chosen):
                turns[v].append(workers[v].run(steps[v]))
    finally:
        for worker in workers.values():
            worker.close()
    each = {v: [turn[clock] / steps[v] for turn in turns[v]] for v in chosen}
    figures: dict[str, Any] = {}
    for v in chosen:
        figures[f"{v}_ms"] = round(1e3 * statistics.median(each[v]), 3)
        figures[f"{v}_peak_mb"] = round(turns[v][-1]["resident_peak_bytes"] / 1e6, 1)
        if v != "torch":
            pairs = zip(each[v], each["torch"], strict=True)
            figures[f"{v}_ratio"] = round(statistics.median(a / b for a, b in pairs), 3)
    return figures, {v: {"steps": steps[v], "turns": turns[v]} for v in chosen}


class Worker:
    """A process of `benchmarks.train_step_worker`."""

    def __init__(self, variant: str, source: str, batches: Path, threads: int) -> None:
        python = sys.executable
        if variant == "portable":
            python = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "PYTHONPATH": str(ROOT),
        }
        module = "benchmarks.train_step_worker"
        arguments = [python, "-m", module, variant, source, str(batches), str(threads)]
        self._process = subprocess.Popen(
            arguments,
            env=environment,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._answer()

    def run(self, steps: int) -> dict[str, float]:
        """Do so many steps; what they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


def check_losses(first: dict[str, dict[str, float]]) -> None:
    """The variants must have trained the same (dropout draws differ between them)."""
    losses = {variant: answer["loss"] for variant, answer in first.items()}
    for loss in losses.values():
        if abs(loss - losses["torch"]) > 0.02 * abs(losses["torch"]):
            raise RuntimeError(f"the variants disagree: {losses}")


def write_batches(source: str, batch: int, path: Path) -> None:
    """Random batches that fit the model."""
    function, name = load_function(source)
    model = inspect_model(function(), name)
    pairs = [model.example_batch(batch, seed) for seed in range(BATCHES)]
    np.savez(
        path,
        x=np.stack([x.numpy() for x, _ in pairs]),
        y=np.stack([y.numpy() for _, y in pairs]),
    )


if __name__ == "__main__":
    main()
