"""One variant of a training step in a process of its own, driven line by line by its parent.

    python -m benchmarks.train_step_worker VARIANT SOURCE BATCH.npz THREADS

Each line on stdin is a number of steps; the answer is JSON: seconds of processor time and of wall
time, the largest resident memory so far, and the last loss. An empty line ends it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LEARNING_RATE = 0.01
SEED = 0
"""Of the initial weights, which PyTorch and the bundle share."""
Step = Callable[[Any, Any], float]


def main(variant: str, source: str, batches: str, threads: int) -> None:
    make = {"torch": torch_step, "portable": bundle_step, "ort_training": bundle_step}[variant]
    step = make(variant, source, threads)
    with np.load(batches, allow_pickle=False) as stored:
        pairs = list(zip(stored["x"], stored["y"], strict=True))
    print(json.dumps({"ready": variant}), flush=True)
    done, loss = 0, 0.0
    for line in sys.stdin:
        if not line.strip():
            break
        processor, wall = time.process_time(), time.perf_counter()
        for _ in range(int(line)):
            loss = step(*pairs[done % len(pairs)])
            done += 1
        figures = {
            "processor_s": time.process_time() - processor,
            "wall_s": time.perf_counter() - wall,
            "resident_peak_bytes": resident_peak_bytes(),
            "loss": loss,
        }
        print(json.dumps(figures), flush=True)


def torch_step(_variant: str, source: str, threads: int) -> Step:
    """PyTorch in eager mode, as its tutorials train."""
    import torch

    from export.losses import resolve_loss

    torch.set_num_threads(threads)
    module, _, function = source.rpartition(":")
    torch.manual_seed(SEED)
    spec = getattr(importlib.import_module(module), function)()
    network = spec.module.train()
    loss_function = resolve_loss(spec.loss).measure
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)

    def step(x: Any, y: Any) -> float:
        optimizer.zero_grad()
        total, weight = loss_function(network(torch.from_numpy(x)), torch.from_numpy(y))
        loss = total / weight
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def bundle_step(variant: str, source: str, threads: int) -> Step:
    """A trainer, as a client uses it; `source` is the bundle's directory."""
    from edge_client.trainers.opening import open_trainer
    from fedtide.bundle import open_bundle_dir

    bundle = open_bundle_dir(Path(source))
    trainer = open_trainer(bundle, variant, threads)  # type: ignore[arg-type]
    raw = bundle.read(bundle.manifest.initial_model)
    header = 8 + int.from_bytes(raw[:8], "little")
    trainer.set_parameters(np.frombuffer(raw[header:], "<f4"))
    del raw

    def step(x: Any, y: Any) -> float:
        loss = trainer.step(x, y, LEARNING_RATE)
        return loss.sum / loss.weight

    return step


def resident_peak_bytes() -> int:
    """The kernel's high-water mark of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
