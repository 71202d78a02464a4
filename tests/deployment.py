"""A federation as it is deployed: a server whose coordinator has a model to learn, and devices that
join it by a code, each in a folder of its own. All of them are the true programs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from demo.local import wait_for
from demo.processes import Child
from fedtide.launch import module_command
from tests import bundles
from tests.committed import rows
from tests.server import Server, told

ROUNDS_S = 300.0
"""Longest time for some rounds, also of an emulated device."""


class Deployment(Server):
    """A context manager that runs broker, registrar and coordinator. Rounds never end."""

    def __init__(self, folder: Path, **rounds: int) -> None:
        """`rounds`: keys of the table of that name in coordinator.toml."""
        super().__init__(folder, "--bundle", str(bundles.build("tiny_mlp")))
        config = self.layout.coordinator_toml
        text = config.read_text()
        for key, value in {"count": 1_000_000, **rounds}.items():
            text = re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
            text = text.replace("[rounds]\n", f"[rounds]\n{key} = {value}\n")
        config.write_text(text)
        words = ("coordinator", "--config", str(config))
        python = str(bundles.export_python() or sys.executable)  # a device's lacks onnx
        self.coordinator = self.child(
            "coordinator", module_command("fedtide", *words, python=python)
        )

    def start(self) -> None:
        """Start the server's services."""
        super().start()
        self.start_registrar()
        self.coordinator.start()

    # ---- devices ----

    def invite(self, name: str) -> list[Path]:
        """A join code and data for a device: files."""
        code, data = self.folder / f"{name}.join", self.folder / f"{name}.npz"
        self.device("add", name, "--out", str(code))
        write_data(data, seed=len(name))
        return [code, data]

    def join(self, name: str) -> Path:
        """A device joins; its folder."""
        (code, data), folder = self.invite(name), self.folder / name
        told("device", "join", str(code), "--folder", str(folder), "--data", str(data))
        return folder

    def start_client(self, folder: Path, **environment: str) -> Child:
        """Run the client of a device that has joined."""
        words = ("client", "--config", str(folder / "client.toml"))
        return self.run(f"{folder.name}-client", *words, **environment)

    # ---- what they have done ----

    @property
    def state_dir(self) -> Path:
        """The coordinator's state."""
        return self.layout.home("coordinator") / "state"

    def newest_model(self) -> int:
        """Its version; 0: none but the first, or none at all."""
        found = rows(self.state_dir, "SELECT COALESCE(MAX(version), 0) FROM models")
        return int(found[0][0]) if found else 0

    def rounds_of(self, *devices: str) -> int:
        """Rounds that have ended with accepted updates of all these devices."""
        marks = ", ".join("?" for _ in devices)
        return len(
            rows(
                self.state_dir,
                "SELECT joined FROM updates WHERE verdict = 'accepted' AND joined IS NOT NULL"
                f" AND device_id IN ({marks})"
                " GROUP BY joined HAVING COUNT(DISTINCT device_id) = ?",
                *devices,
                len(devices),
            )
        )

    def wait_for_rounds(self, more: int, *devices: str) -> None:
        """Until so many more have ended."""
        wanted = self.rounds_of(*devices) + more
        what = f"{more} rounds of {' and '.join(devices)}"
        wait_for(lambda: self.rounds_of(*devices) >= wanted, what, ROUNDS_S)


def write_data(path: Path, seed: int) -> None:
    """Three classes in 8 dimensions, as the model wants them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 60)
    x = (np.eye(3, 8)[y] * 4 + rng.normal(size=(60, 8))).astype(np.float32)
    np.savez(path, x=x, y=y)
