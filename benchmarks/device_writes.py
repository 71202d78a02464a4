"""What does a round cost a device's SD card? Bytes written and fsyncs of the client, by purpose.

One client of the 199,210-parameter MNIST 2NN (0.80 MB a model, f32 updates) against a real
coordinator, every write to its state folder seen by strace; once as configured by default, once
with progress saved after every epoch. A round is the mean over all but the first, which also
fetches the bundle; the last is the evaluation that ends a run.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurement import save
from demo.brokers import COORDINATOR, Broker
from demo.local import LocalFederation
from fedtide.cli import main as main_of_fedtide

ROUNDS, EPOCHS, WAIT_S = 11, 5, 300.0
PURPOSES = {"partial": "download", "blobs": "update", "progress": "progress", "local": "local"}
_CALL = re.compile(r"(write|pwrite64|fsync)\(\d+<([^>]*)>(?:, \"\"\.*, (\d+))?")
"""At its beginning: the end of a call is on another line when threads take turns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="an exported mnist_2nn, to save time")
    options = parser.parse_args()
    figures: dict[str, Any] = {"rounds": ROUNDS, "epochs": EPOCHS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = options.bundle
        if bundle is None:
            bundle = folder / "bundle"
            main_of_fedtide(["export", "export.models.fedavg:mnist_2nn", "--out", str(bundle)])
        for label, lost_ms_max in (("default", 60_000), ("every_epoch", 1)):
            short = measure(folder / f"{label}-1", bundle, 1, lost_ms_max)
            whole = measure(folder / f"{label}-n", bundle, ROUNDS, lost_ms_max)
            figures[label] = {
                key: round((count - short[key]) / (ROUNDS - 1), 1)
                for key, count in sorted(whole.items())
            }
    save("device_writes", figures, {})


def measure(folder: Path, bundle: Path, rounds: int, lost_ms_max: int) -> Counter[str]:
    """Bytes and fsyncs by purpose, over a whole run."""
    folder.mkdir()
    trace, python = folder / "trace", folder / "python"
    python.write_text(
        "#!/bin/sh\nexec strace -D -f -y -s 0 -qq -e trace=write,pwrite64,fsync "
        f'-o {trace} {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=rng.random((300, 1, 28, 28), dtype=np.float32),
        y=rng.integers(0, 10, 300),
    )
    with (
        Broker("mosquitto", folder / "broker", (COORDINATOR, "device")) as broker,
        LocalFederation(folder / "run", broker) as federation,
    ):
        federation.add_coordinator(
            bundle,
            rounds={"count": rounds, "cohort_size": 1},
            plan={"epochs": EPOCHS, "batch_size": 10},
        )
        training = {"lost_ms_max": lost_ms_max}
        federation.add_device("device", folder / "data.npz", str(python), training=training)
        federation.start()
        code = federation.coordinator.wait(WAIT_S)
        assert code == 0, f"the coordinator ended with {code}"
    return counted(trace, folder / "run" / "device")


def counted(trace: Path, state: Path) -> Counter[str]:
    """Of the lines that strace wrote, those about files in `state`."""
    found: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        call = _CALL.search(line)
        if call is None or not call[2].startswith(f"{state}/"):
            continue
        top = Path(call[2]).relative_to(state).parts
        name = top[0].removeprefix(".").removesuffix(".new") if top else "folder"
        purpose = PURPOSES.get(name, "state")
        if call[1] == "fsync":
            found["fsyncs"] += 1
        else:
            found[f"{purpose}_bytes"] += int(call[3])
            found["bytes"] += int(call[3])
    return found


if __name__ == "__main__":
    main()
