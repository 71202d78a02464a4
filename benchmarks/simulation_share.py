"""What share of a simulation with real learning is inside onnxruntime, and are all cores at work?

1,000 devices hold 60 images of MNIST each; 100 of them train in a round (C=0.1, E=1, B=10), and
every model is evaluated on the 10,000 test images. Measured in processor time, which other programs
disturb least: inside `run_with_iobinding`, by each worker's own clock; of all workers; and of the
process that hands out work and adds up. How busy the cores are needs a quiet machine: the load
is recorded.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurement import save
from coordinator.cohort import select_cohort
from coordinator.config import RoundsConfig
from coordinator.plans import round_plan
from edge_client.trainers import portable
from fedtide import evaluator
from fedtide.plan import Plan
from simulator.device_names import device_name, index_of
from simulator.learning.bundles import named_bundle
from simulator.learning.datasets import open_data_set
from simulator.learning.learner import Learner
from simulator.learning.models import Models, Part, Version
from simulator.learning.partitions import iid
from simulator.learning.workers import open_workers

DEVICES, COHORT = 1_000, 100
MODELS = ("mnist_2nn", "mnist_cnn")
WARM_UP = 1
PROCESSES_MAX = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", type=Path, help="folder of bundles; default: the cache")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument("--cohort", type=int, default=COHORT)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    clock = RuntimeClock()
    turns: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.turns):
        for model in options.models.split(","):
            turn = measure(model, options, clock)
            turns.setdefault(model, []).append(turn)
            print(json.dumps({model: turn}), file=sys.stderr, flush=True)
    figures: dict[str, Any] = {
        "devices": options.devices, "cohort": options.cohort, "epochs": options.epochs,
        "workers": options.workers,
    }  # fmt: skip
    for model, taken in turns.items():
        figures[model] = {
            key: round(float(np.median([turn[key] for turn in taken])), 3) for key in taken[0]
        }
    save("simulation_share", figures, {"turns": turns})


class RuntimeClock:
    """Processor seconds inside onnxruntime, and in all, of each process forked from this one."""

    def __init__(self) -> None:
        memory = mmap.mmap(-1, 8 * 2 * PROCESSES_MAX)
        self._inside, self._total = np.frombuffer(memory, np.float64).reshape(2, PROCESSES_MAX)
        run = evaluator.run_bound
        for module in (portable, evaluator):
            module.run_bound = self._timed(run)  # type: ignore[attr-defined]

    def begin(self) -> None:
        """Forget what was before; nobody may be at work."""
        self._inside[:] = self._total[:] = 0

    def seconds(self) -> tuple[float, float]:
        """Inside onnxruntime, and of all these processes until they were last in it."""
        return float(self._inside.sum()), float(self._total.sum())

    def _timed(self, run: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def timed(session: Any, binding: Any) -> None:
            slot = os.getpid() % PROCESSES_MAX
            began_s = time.thread_time()
            run(session, binding)
            self._inside[slot] += time.thread_time() - began_s
            self._total[slot] = time.process_time()

        return timed


def measure(model: str, options: argparse.Namespace, clock: RuntimeClock) -> dict[str, float]:
    """Some rounds with new workers; the first rounds, which load the graphs, are not counted."""
    bundle = named_bundle(str(options.bundles / model) if options.bundles else model)
    data = open_data_set("mnist")
    learner = Learner(bundle, data, iid(len(data), options.devices, 0))
    test_batches = learner.test_batches  # read before there are processes: they share it
    rounds, plan = RoundsConfig(), Plan(epochs=options.epochs, batch_size=10)
    names = [device_name(number) for number in range(options.devices)]
    clock.begin()
    workers = open_workers(learner, options.workers)
    history: list[Version] = []
    models = Models(bundle, workers, test_batches, on_version=history.append)

    def advance(round_id: int) -> None:
        asked = round_plan(plan, rounds, round_id, round_id - 1)
        cohort = select_cohort(names, options.cohort, 1.0, 0, round_id)
        models.advance(round_id, [Part(index_of(name), asked, round_id - 1) for name in cohort])

    try:
        for round_id in range(1, WARM_UP + 1):
            advance(round_id)
        models.settle()
        before = (*clock.seconds(), time.process_time(), time.perf_counter())
        for round_id in range(WARM_UP + 1, WARM_UP + options.rounds + 1):
            advance(round_id)
        models.settle()
        after = (*clock.seconds(), time.process_time(), time.perf_counter())
    finally:
        workers.close()
    inside, theirs, ours, wall = (b - a for a, b in zip(before, after, strict=True))
    if workers.count == 1:
        theirs, ours = ours, 0.0  # one process is both
    metrics = history[-1].metrics
    assert metrics is not None
    return {
        "share_of_workers": inside / theirs,
        "share_of_everything": inside / (theirs + ours),
        "cores_busy": (theirs + ours) / wall / (os.cpu_count() or 1),
        "rounds_per_second": options.rounds / wall,
        "accuracy": metrics.accuracy or 0.0,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
