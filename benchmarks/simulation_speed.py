"""How fast is a simulation with real learning? `fedtide simulate` and Flower's simulation engine.

Two tasks on MNIST, each by both in turns, whole commands in processes of their own:

- `fedavg`: 100 devices with 600 images each (IID), 10 of them a round, the 2NN of the FedAvg paper
  (199,210 parameters), one epoch with batches of 10, 20 rounds, each model evaluated on the 10,000
  test images;
- `flute`: logistic regression, 1,000 devices, 10 a round, batches of 10, learning rate 0.03,
  100 rounds: the task of Microsoft FLUTE's README. Its data, a partition by a power law, are not
  used: images are divided by Dirichlet(0.1), so that sizes have a long tail and most devices few
  digits. Flower evaluates every 20 rounds, fedtide after each.

`wall_s` is from the start of the command to its end; rounds a second are those from the second
model to the last. Memory is measured in turns of their own (`benchmarks.process_memory`). fedtide's
model is exported once, before; the seconds of that are beside. Flower is run by the Python of an
environment with `flwr[simulation]` and torch, `--flower PYTHON`; `benchmarks.flower_fedavg` says
how.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.measurement import RESULTS, save
from benchmarks.process_memory import MemoryPeak
from simulator.fleet.record import read_record
from simulator.learning.bundles import MODELS
from simulator.learning.datasets import data_folder
from simulator.learning.datasets.mnist import Mnist
from simulator.learning.partitions import dirichlet, iid

ROOT = RESULTS.parent
FIRST = 2
"""The model from which on rounds are counted: before it workers load their graphs."""
_ROUND = re.compile(r"round (\d+) of \d+")


class Task(Struct, frozen=True):
    """Both sides' settings."""

    model: str
    devices: int
    rounds: int
    learning_rate: float
    evaluate_every: int
    """Of Flower."""
    partition: str
    cohort: int = 10
    epochs: int = 1
    batch_size: int = 10
    alpha: float = 0.1
    folder: str = ""
    """Of Flower's arrays."""


TASKS = {
    "fedavg": Task("mnist_2nn", 100, 20, 0.1, 1, "iid"),
    "flute": Task("mnist_lr", 1_000, 100, 0.03, 20, "dirichlet"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--memory-turns", type=int, default=2)
    parser.add_argument("--flower", help="Python of an environment with flwr[simulation], torch")
    parser.add_argument("--bundles", type=Path, help="keep bundles here, use those that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, Any] = {}
        samples: dict[str, Any] = {}
        for task_name in options.tasks.split(","):
            task = TASKS[task_name]
            bundle, export_s = bundle_of(task.model, (options.bundles or folder).resolve())
            commands = {"fedtide": write_scenario(task_name, task, bundle, folder)}
            if options.flower:
                commands["flower"] = write_arrays(task_name, task, folder, options.flower)
            turns = take_turns(commands, options.turns, options.memory_turns)
            figures[task_name] = {**summary(turns), "fedtide_export_s": export_s}
            samples[task_name] = turns
        save("simulation_speed", figures, samples)


def bundle_of(model: str, folder: Path) -> tuple[Path, float]:
    """The bundle, and the seconds that its export took (0 if it was there)."""
    bundle = folder / model
    if (bundle / "manifest.json").is_file():
        return bundle, 0.0
    started = time.monotonic()
    command = [sys.executable, "-m", "fedtide", "export", MODELS[model], "--out", str(bundle)]
    subprocess.run([*command, "--runtime", "portable"], check=True, capture_output=True, cwd=ROOT)
    return bundle, round(time.monotonic() - started, 1)


def write_scenario(name: str, task: Task, bundle: Path, folder: Path) -> dict[str, Any]:
    """What runs fedtide's side."""
    alpha = f"alpha = {task.alpha}" if task.partition == "dirichlet" else ""
    path = folder / f"{name}.toml"
    path.write_text(f"""
name = "{name}"
hours_max = 1000

[fleet]
devices = {task.devices}

[learning]
kind = "real"
model = "{bundle.resolve()}"
data = "mnist"
partition = "{task.partition}"
{alpha}

[rounds]
count = {task.rounds}
cohort_size = {task.cohort}

[plan]
epochs = {task.epochs}
batch_size = {task.batch_size}
learning_rate = {task.learning_rate}
""")
    out = folder / f"{name}-out"
    command = [sys.executable, "-m", "fedtide", "simulate", str(path), "--plain"]
    environment = {"PYTHONPATH": str(ROOT), "FEDTIDE_DATA": str(data_folder())}
    return {"command": [*command, "--out", str(out)], "environment": environment, "out": out}


def write_arrays(name: str, task: Task, folder: Path, python: str) -> dict[str, Any]:
    """What runs Flower's side: the same data and parts, as arrays that it can map."""
    arrays = folder / f"{name}-arrays"
    arrays.mkdir()
    data = Mnist(data_folder())
    if task.partition == "iid":
        parts = iid(len(data), task.devices, 0)
    else:
        parts = dirichlet(data.labels, task.devices, task.alpha, 0)
    contents: dict[str, Any] = {
        "x": pixels(data.examples(np.arange(len(data))).x),
        "y": data.labels,
        "x_test": pixels(data.test.x),
        "y_test": data.test.y,
        "order": np.concatenate(parts),
        "bounds": np.cumsum([0, *map(len, parts)]),
    }
    for key, array in contents.items():
        np.save(arrays / key, array)
    path = arrays / "task.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(task, folder=str(arrays))))
    environment = {
        "PYTHONPATH": str(ROOT),
        "FLOWER_TASK": str(path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [python, "-c", "from benchmarks.flower_fedavg import main; main()"]
    return {"command": command, "environment": environment}


def pixels(x: Any) -> Any:
    """uint8 of float32 in 0..1."""
    return np.round(x * 255).astype(np.uint8)


def take_turns(
    commands: dict[str, dict[str, Any]], turns: int, memory_turns: int
) -> dict[str, list[dict[str, float]]]:
    """Every command in turn; those with memory after those with time."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for index in range(turns + memory_turns):
        for name, how in commands.items():
            turn = run(how, watched=index >= turns)
            taken[name].append(turn)
            print(json.dumps({name: turn}), file=sys.stderr, flush=True)
    return taken


def run(how: dict[str, Any], *, watched: bool) -> dict[str, float]:
    """One command from its start to its end."""
    peak = MemoryPeak()
    load = os.getloadavg()[0]
    if "out" in how:  # where something is recorded, nothing would be run
        shutil.rmtree(how["out"], ignore_errors=True)
    started = time.time()
    environment = {**peak.environment, **how["environment"], "OMP_NUM_THREADS": "1"}
    with peak if watched else contextlib.nullcontext():
        process = subprocess.Popen(
            how["command"],
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        lines = [(time.time(), line) for line in process.stdout]
        code = process.wait()
    wall_s = time.time() - started
    if code:
        raise RuntimeError("".join(line for _, line in lines[-30:]))
    reached, accuracy = reached_by_fedtide(how["out"], lines) if "out" in how else by_flower(lines)
    first, last = min(n for n in reached if n >= FIRST), max(reached)
    turn = {
        "wall_s": wall_s,
        "rounds_per_second": (last - first) / (reached[last] - reached[first]),
        "accuracy": accuracy,
        "load": load,
    }
    if watched:
        turn |= {"pss_mb": peak.pss_bytes / 1e6, "rss_mb": peak.rss_bytes / 1e6}
        turn |= {"processes": peak.processes, "memory_samples": peak.samples}
    return turn


def reached_by_fedtide(out: Path, lines: list[tuple[float, str]]) -> tuple[dict[int, float], float]:
    """When each round that progress tells of was done, and the last accuracy of the record."""
    reached: dict[int, float] = {}
    for at_s, line in lines:
        if found := _ROUND.search(line):
            reached.setdefault(int(found[1]), at_s)
    (record,) = out.glob("*.jsonl.gz")
    return reached, read_record(record).totals.evaluations[-1].accuracy or 0.0


def by_flower(lines: list[tuple[float, str]]) -> tuple[dict[int, float], float]:
    """When each measured model was there, and the last accuracy."""
    said = next(line for _, line in reversed(lines) if line.startswith('{"reached"'))
    reached = json.loads(said)["reached"]
    return {one["round"]: one["at_s"] for one in reached}, reached[-1]["accuracy"]


def summary(turns: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians of both, the highest memory, and the median ratio turn by turn."""
    figures: dict[str, float] = {}
    for name, taken in turns.items():
        timed = [turn for turn in taken if "pss_mb" not in turn]
        for key in ("wall_s", "rounds_per_second", "accuracy"):
            figures[f"{name}_{key}"] = round(statistics.median(t[key] for t in timed), 3)
        for key in ("pss_mb", "rss_mb", "processes"):
            values = [turn[key] for turn in taken if key in turn]
            if values:
                figures[f"{name}_{key}"] = round(max(values))
    if "flower" in turns:
        for key in ("wall_s", "rounds_per_second"):
            pairs = zip(turns["fedtide"], turns["flower"], strict=True)
            ratios = [ours[key] / theirs[key] for ours, theirs in pairs if "pss_mb" not in ours]
            figures[f"fedtide_over_flower_{key}"] = round(statistics.median(ratios), 3)
    return figures


if __name__ == "__main__":
    main()
