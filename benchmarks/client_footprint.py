"""What does the client cost a device? Installed distributions, memory idle and at its peak.

A fresh environment with `fedtide[client]` (stock onnxruntime, no torch); the client of the
1,663,370-parameter MNIST CNN at batch size 10, against a real coordinator over loopback Mosquitto.
PSS is sampled every 20 ms; `peak_resident` is the kernel's own high-water mark (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measurement import RESULTS, pss_bytes, save
from demo.brokers import COORDINATOR, Broker
from demo.local import LocalFederation, wait_for
from edge_client.worker import IDLE_S
from fedtide.cli import main as main_of_fedtide

ROOT = RESULTS.parent
MB = 1e6
WAIT_S = 120.0
_DISTRIBUTIONS = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.name: d.version for d in m.distributions()}, sort_keys=True))"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="an exported mnist_cnn, to save time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python, site_bytes = fresh_environment(folder / "venv")
        installed = json.loads(subprocess.check_output([python, "-I", "-c", _DISTRIBUTIONS]))
        bundle = options.bundle
        if bundle is None:
            bundle = folder / "bundle"
            main_of_fedtide(["export", "export.models.fedavg:mnist_cnn", "--out", str(bundle)])
        memory = measure(folder, bundle, python)
    ours = {name: v for name, v in installed.items() if name not in ("pip", "setuptools")}
    save(
        "client_footprint",
        {
            "distributions": len(ours),
            "distribution_versions": ours,
            "site_packages_mb": round(site_bytes / MB, 1),
            **{key: round(value / MB, 1) for key, value in memory.items()},
        },
        {},
    )


def fresh_environment(folder: Path) -> tuple[str, int]:
    """Python of a new environment with `fedtide[client]`, and the bytes it takes."""
    subprocess.check_call([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", f"{ROOT}[client]"]
    subprocess.check_call(install, stderr=subprocess.DEVNULL)
    files = (path for path in (folder / "lib").rglob("*") if path.is_file())
    return python, sum(path.stat().st_size for path in files)


def measure(folder: Path, bundle: Path, python: str) -> dict[str, float]:
    """PSS in bytes: idle before any task, the peak while training, idle afterwards."""
    rng = np.random.default_rng(0)
    data = folder / "data.npz"
    x = rng.random((600, 1, 28, 28), dtype=np.float32)
    np.savez(data, x=x, y=rng.integers(0, 10, 600))
    with (
        Broker("mosquitto", folder / "broker", (COORDINATOR, "device", "other")) as broker,
        LocalFederation(folder / "run", broker) as federation,
    ):
        federation.add_coordinator(
            bundle,
            rounds={"count": 2, "cohort_size": 2, "devices_min": 2, "quorum": 2},
            plan={"epochs": 1, "batch_size": 10, "learning_rate": 0.1},
        )
        device = federation.add_device("device", data, python)
        other = federation.add_device("other", data, python)
        federation.coordinator.start()
        device.start()
        fetched = federation.folder / "device" / "blobs"
        wait_for(lambda: fetched.exists() and len(list(fetched.iterdir())) >= 4, "fetch", WAIT_S)
        process_id = device.process_id
        assert process_id is not None
        time.sleep(2)
        idle = statistics.median(pss_bytes(process_id) for _ in range(20))
        other.start()
        peak = 0
        while federation.coordinator.exit_code() is None:
            peak = max(peak, pss_bytes(process_id))
            time.sleep(0.02)
        time.sleep(IDLE_S + 2)
        status = Path(f"/proc/{process_id}/status").read_text()
        high_water = int(status.split("VmHWM:")[1].split()[0]) * 1024
        after = pss_bytes(process_id)
    return {
        "idle_pss_mb": idle,
        "peak_training_pss_mb": peak,
        "peak_resident_mb": high_water,
        "idle_after_training_pss_mb": after,
    }


if __name__ == "__main__":
    main()
