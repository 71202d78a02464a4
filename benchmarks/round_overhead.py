"""How much does a round cost beyond training? Ten clients, 199,210 parameters, loopback Mosquitto.

Overhead of a round = from its opening to the next one's, minus the training time (data loading
and evaluation included) of the slowest client that took part, as that client measured it.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measurement import save
from demo.brokers import COORDINATOR, Broker
from demo.local import LocalFederation
from fedtide.cli import main as main_of_fedtide

DEVICES, ROUNDS = 10, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bundle", type=Path, help="an exported mnist_2nn, to save time")
    options = parser.parse_args()
    device_python = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = options.bundle
        if bundle is None:
            bundle = folder / "bundle"
            main_of_fedtide(["export", "export.models.fedavg:mnist_2nn", "--out", str(bundle)])
        rng = np.random.default_rng(0)
        devices = [f"device-{k}" for k in range(DEVICES)]
        with (
            Broker("mosquitto", folder / "broker", (COORDINATOR, *devices)) as broker,
            LocalFederation(folder / "run", broker) as federation,
        ):
            federation.add_coordinator(
                bundle,
                rounds={
                    "count": options.rounds,
                    "cohort_size": DEVICES,
                    "devices_min": DEVICES,
                    "quorum": DEVICES,
                },
                plan={"epochs": 1, "batch_size": 10, "learning_rate": 0.1},
            )
            for device in devices:
                data = folder / f"{device}.npz"
                x = rng.random((100, 1, 28, 28), dtype=np.float32)
                np.savez(data, x=x, y=rng.integers(0, 10, 100))
                federation.add_device(device, data, device_python)
            federation.start()
            federation.coordinator.wait(600)
            rounds = read_rounds(federation.state_dir / "coordinator.db")
    overheads = [wall - training for wall, training in rounds]
    save(
        "round_overhead",
        {
            "overhead_ms_median": statistics.median(overheads),
            "overhead_ms_p90": round(float(np.percentile(overheads, 90)), 1),
            "training_ms_median": statistics.median(training for _, training in rounds),
            "rounds": len(rounds),
            "clients": DEVICES,
        },
        {"wall_ms": [w for w, _ in rounds], "slowest_training_ms": [t for _, t in rounds]},
    )


def read_rounds(path: Path) -> list[tuple[int, int]]:
    """(wall, slowest training) of each round but the first, which also opens the bundle."""
    database = sqlite3.connect(path)
    opened = dict(database.execute("SELECT round_id, opened_at_ms FROM rounds"))
    slowest = dict(
        database.execute("SELECT round_id, MAX(training_ms) FROM updates GROUP BY round_id")
    )
    return [
        (opened[round_id + 1] - opened[round_id], slowest[round_id])
        for round_id in sorted(opened)
        if round_id > 1 and round_id + 1 in opened
    ]


if __name__ == "__main__":
    main()
