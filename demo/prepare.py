"""Everything a federation needs on disk before it starts: data, bundle, configurations."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from demo.brokers import COORDINATOR, Broker, child_environment
from demo.data import DEVICES, Split
from demo.local import access_table, toml
from demo.processes import ProcessError
from edge_client.trainers.opening import available_runtimes
from fedtide.bundle import open_bundle_dir
from fedtide.launch import module_command

FEDERATION = "demo"
COLLECT_MS = 1_500
"""From invitation to deadline."""
QUORUM = 4
EXPORT_S = 120.0
_CPU_SHARE = {"portable": 0.02, "ort_training": 0.02}
"""A device of the demo is much slower than this machine: training takes some 0.3 s a round."""

Runtime = Literal["portable", "ort_training"]


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    seed: int
    rounds: int
    folder: Path
    """The run's own folder, for data, state, configurations and logs."""
    device_python: str
    """Runs the devices with the portable runtime."""
    faults: bool


def export_model(settings: Settings) -> Path:
    """Run `fedtide export`; the bundle's folder.

    Raises:
        ProcessError: it failed; with its output.
    """
    bundle = settings.folder / "bundle"
    try:
        done = subprocess.run(
            module_command("fedtide", "export", "demo.model:digits_mlp", "--out", str(bundle)),
            env=child_environment(),
            cwd=settings.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=EXPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProcessError(f"fedtide export took longer than {EXPORT_S:g} s") from None
    (settings.folder / "export.log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise ProcessError(f"fedtide export failed:\n{done.stdout}{done.stderr}")
    return bundle


def choose_runtimes(bundle: Path) -> dict[str, Runtime]:
    """Half of the devices on each runtime, if this machine and the bundle have both."""
    both = (
        "ort_training" in available_runtimes()
        and open_bundle_dir(bundle).manifest.runtimes.ort_training is not None
    )
    return {
        device: "ort_training" if both and number % 2 else "portable"
        for number, device in enumerate(DEVICES)
    }


def write_data(folder: Path, split: Split) -> Path:
    """One .npz for the coordinator's test set and one for each device."""
    data = folder / "data"
    data.mkdir()
    split.test.save(data / "test.npz")
    for device, part in split.devices.items():
        part.save(data / f"{device}.npz")
    return data


def coordinator_toml(settings: Settings, broker: Broker) -> str:
    """The coordinator's configuration."""
    folder = settings.folder
    return toml(
        {
            "federation": FEDERATION,
            "bundle": str(folder / "bundle"),
            "state_dir": str(folder / "coordinator"),
            "hello_ms": 5_000,
            "broker": access_table(broker, COORDINATOR),
            "rounds": {
                "count": settings.rounds,
                "cohort_fraction": 1.0,
                "quorum": QUORUM,
                "devices_min": len(DEVICES) - 3,
                "collect_ms": COLLECT_MS,
                "back_off_ms": 500,
                "seed": settings.seed,
            },
            # The whole local set as one batch, and few large steps: McMahan's E = 3, B = infinity.
            "plan": {"epochs": 3, "batch_size": "all", "learning_rate": 0.4},
            "evaluation": {"data": str(folder / "data" / "test.npz")},
        }
    )


def client_toml(
    settings: Settings, broker: Broker, device: str, port: int, runtime: Runtime
) -> str:
    """One device's configuration; `port` is that of its own network."""
    folder = settings.folder
    return toml(
        {
            "federation": FEDERATION,
            "device": device,
            "state_dir": str(folder / device),
            "data": {"path": str(folder / "data" / f"{device}.npz")},
            "broker": {**access_table(broker, device, port), "give_up_ms": 0},
            "training": {"runtime": runtime, "cpu_share": _CPU_SHARE[runtime]},
        }
    )
