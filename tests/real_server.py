"""A server as `fedtide server init` makes it, below a folder, running on the loopback.

Mosquitto with certificates, registrar and coordinator: the true programs.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from demo.brokers import free_port, mosquitto_path
from demo.local import wait_for
from demo.processes import Child
from fedtide.launch import module_command
from tests import bundles

ROOT = Path(__file__).resolve().parent.parent
MODEL = "tiny_mlp"
WAIT_S = 300.0
_DEVICE_PYTHON = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)


class Server:
    """A context manager that starts and stops it. Rounds open while `devices_min` are online, and
    count if so many have answered."""

    def __init__(self, folder: Path, devices_min: int = 2) -> None:
        self.folder = folder.resolve()  # as the registrar names it, which looks for its broker
        self.children: dict[str, Child] = {}
        self.port = free_port()
        self._devices_min = devices_min
        self._etc = self.folder / "etc/fedtide"
        self._python = str(bundles.export_python() or sys.executable)

    def __enter__(self) -> Self:
        ports = ["--port", str(self.port), "--local-port", str(free_port())]
        where = ["--bind", "127.0.0.1", "--root", str(self.folder), "--bundle"]
        self.fedtide(
            *("server", "init", "127.0.0.1", "--federation", "tides"),
            *(*ports, *where, str(bundles.build(MODEL))),
        )
        config = self._etc / "coordinator.toml"
        text = config.read_text()
        least = self._devices_min
        for key, value in (("count", 1_000_000), ("quorum", least), ("devices_min", least)):
            text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        config.write_text(text)
        broker = [mosquitto_path() or "mosquitto", "-c", str(self._etc / "broker/mosquitto.conf")]
        self.start("broker", broker)
        for role in ("registrar", "coordinator"):
            words = ["fedtide", role, "--config", str(self._etc / f"{role}.toml")]
            self.start(role, module_command(*words, python=self._python))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in reversed(self.children.values()):
            child.stop()

    def fedtide(self, *words: str) -> str:
        """What a command of the operator's prints."""
        return _said(module_command("fedtide", *words, python=self._python))

    def device(self, *words: str) -> str:
        """`fedtide device ...` on the server."""
        return self.fedtide("device", *words, "--config", str(self._etc / "registrar.toml"))

    def invite(self, folder: Path, name: str) -> list[Path]:
        """A join code and data for the device `name`: files in `folder`."""
        code, data = folder / f"{name}.join", folder / f"{name}.npz"
        self.device("add", name, "--out", str(code))
        write_data(data, seed=len(name))
        return [code, data]

    def join(self, folder: Path, name: str) -> Path:
        """A client of this machine's kind joins, in FOLDER/NAME; its configuration."""
        code, data = self.invite(folder, name)
        place = ["--folder", str(folder / name), "--data", str(data)]
        words = ["fedtide", "device", "join", str(code), *place]
        _said(module_command(*words, python=_DEVICE_PYTHON))
        return folder / name / "client.toml"

    def start_client(self, name: str, config: Path) -> Child:
        """Run a client that has joined."""
        words = ["fedtide", "client", "--config", str(config)]
        return self.start(name, module_command(*words, python=_DEVICE_PYTHON))

    def start(self, name: str, command: list[str]) -> Child:
        """A program that ends with the server."""
        child = self.children[name] = Child(name, command, self.folder / f"{name}.log")
        child.start(PYTHONPATH=str(ROOT))
        return child

    def wait_for_rounds(self, more: int, devices: tuple[str, str]) -> None:
        """So many more rounds in which both devices counted."""
        wanted = self.rounds_of(devices) + more
        told = f"{more} rounds of {' and '.join(devices)}"
        wait_for(lambda: self.rounds_of(devices) >= wanted, told, WAIT_S)

    def rounds_of(self, devices: tuple[str, str]) -> int:
        """Rounds so far in which both devices counted."""
        path = self.folder / "var/lib/fedtide/coordinator/state/coordinator.db"
        if not path.exists():
            return 0
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            rows = database.execute(_ROUNDS_OF_BOTH, devices).fetchone()
        except sqlite3.OperationalError:
            return 0  # no tables yet
        finally:
            database.close()
        return int(rows[0])


_ROUNDS_OF_BOTH = """
SELECT COUNT(*) FROM (
    SELECT joined FROM updates WHERE verdict = 'accepted' AND joined IS NOT NULL
    AND device_id IN (?, ?) GROUP BY joined HAVING COUNT(DISTINCT device_id) = 2)
"""


def write_data(path: Path, seed: int) -> None:
    """Three classes in 8 dimensions, as the model wants them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 60)
    x = (np.eye(3, 8)[y] * 4 + rng.normal(size=(60, 8))).astype(np.float32)
    np.savez(path, x=x, y=y)


def _said(command: list[str]) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
