"""Coordinator and clients as real processes on this machine, each in a folder of its own.

The same for the demo, the end-to-end tests and the benchmarks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo.brokers import COORDINATOR, Broker, write_private
from fedtide.errors import FedtideError

PROJECT = Path(__file__).resolve().parent.parent


class Program:
    """One `fedtide` process; its output goes to a log file."""

    def __init__(
        self, name: str, arguments: Sequence[str], folder: Path, python: str = sys.executable
    ) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self._command = [python, "-m", "fedtide", *arguments]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again); the log goes on."""
        # Local training must not spread over all cores: ten devices share this machine.
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Exit code.

        Raises:
            FedtideError: it did not end in time; with the end of its log.
        """
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise FedtideError(
                f"{self.name} did not end within {timeout_s:g} s:\n{self.log_tail()}"
            ) from None

    def kill(self) -> None:
        """End it as a power cut would."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def stop(self) -> None:
        """End it in good order, or else by force."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def log(self) -> str:
        """All it said."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 20) -> str:
        """The last it said."""
        return "\n".join(self.log().splitlines()[-lines:])


class LocalFederation:
    """A broker's clients: one coordinator, and devices by name. Stops all of them at the end."""

    def __init__(self, folder: Path, broker: Broker, name: str = "local") -> None:
        self.folder = folder
        self.broker = broker
        self.name = name
        self.devices: dict[str, Program] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def state_dir(self) -> Path:
        """The coordinator's state."""
        return self.folder / "coordinator"

    def add_coordinator(
        self, bundle: Path, python: str = sys.executable, **sections: Mapping[str, Any]
    ) -> Program:
        """The coordinator; `sections` are tables of coordinator.toml."""
        config = {
            "federation": self.name,
            "bundle": str(bundle.resolve()),
            "state_dir": str(self.state_dir),
            **sections,
        }
        path = self._write_config(COORDINATOR, config, COORDINATOR)
        self.coordinator = Program(
            COORDINATOR, ["coordinator", "--config", str(path)], self.folder, python
        )
        return self.coordinator

    def add_device(
        self,
        device: str,
        data: Path,
        python: str = sys.executable,
        *,
        port: int = 0,
        **sections: Mapping[str, Any],
    ) -> Program:
        """One device; `sections` are tables of client.toml, `port` that of a proxy."""
        config = {
            "federation": self.name,
            "device": device,
            "state_dir": str(self.folder / device),
            "data": {"path": str(data.resolve())},
        }
        for key, value in sections.items():
            config[key] = {**config.get(key, {}), **value}  # type: ignore[dict-item]
        path = self._write_config(device, config, device, port=port)
        program = Program(device, ["client", "--config", str(path)], self.folder, python)
        self.devices[device] = program
        return program

    def start(self) -> None:
        """Start coordinator and devices."""
        self.coordinator.start()
        for program in self.devices.values():
            program.start()

    def _write_config(
        self, name: str, config: Mapping[str, Any], user: str, *, port: int = 0
    ) -> Path:
        access = self.broker.access(user, port=port)
        broker = {
            "host": access.host,
            "port": access.port,
            "protocol": access.protocol,
            "username": access.username,
            "password_file": str(access.password_file),
            "reconnect_ms_max": access.reconnect_ms_max,
        }
        path = self.folder / f"{name}.toml"
        write_private(path, to_toml({**config, "broker": broker}))
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for program in (*self.devices.values(), self.coordinator):
            program.stop()


def to_toml(config: Mapping[str, Any]) -> str:
    """Strings, numbers and one level of tables: all that our configurations have."""
    lines = [f"{key} = {_value(v)}" for key, v in config.items() if not isinstance(v, Mapping)]
    for key, table in config.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{key}]", *(f"{name} = {_value(v)}" for name, v in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Return when a condition holds.

    Raises:
        FedtideError: it did not within the time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise FedtideError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.01)  # between two looks at another process
