"""A federation of real processes on this machine, each in a folder of its own.

For the end-to-end tests and the benchmarks; the demo adds faults and a view.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo.brokers import COORDINATOR, Broker, write_private
from demo.processes import Child, ProcessError
from fedtide.errors import FedtideError
from fedtide.launch import module_command


class LocalFederation:
    """One coordinator, and devices by name, at one broker. Stops all of them at the end."""

    def __init__(self, folder: Path, broker: Broker, name: str = "local") -> None:
        self.folder = folder
        self.name = name
        self.devices: dict[str, Child] = {}
        self._broker = broker
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def state_dir(self) -> Path:
        """The coordinator's state."""
        return self.folder / COORDINATOR

    def add_coordinator(
        self, bundle: Path, python: str = sys.executable, **tables: Mapping[str, Any]
    ) -> Child:
        """The coordinator; `tables` of coordinator.toml."""
        config = {
            "federation": self.name,
            "bundle": str(bundle.resolve()),
            "state_dir": str(self.state_dir),
            **tables,
        }
        self.coordinator = self._child(COORDINATOR, "coordinator", config, python, port=0)
        return self.coordinator

    def add_device(
        self,
        device: str,
        data_path: Path,
        python: str = sys.executable,
        *,
        port: int = 0,
        **tables: Mapping[str, Any],
    ) -> Child:
        """One device; `tables` of client.toml, `port` that of a proxy."""
        config = {
            "federation": self.name,
            "device": device,
            "state_dir": str(self.folder / device),
            **tables,
            "data": {"path": str(data_path.resolve()), **tables.get("data", {})},
        }
        self.devices[device] = self._child(device, "client", config, python, port=port)
        return self.devices[device]

    def start(self) -> None:
        """Start coordinator and devices."""
        for child in (self.coordinator, *self.devices.values()):
            child.start()

    def _child(
        self, name: str, command: str, config: Mapping[str, Any], python: str, *, port: int
    ) -> Child:
        path = self.folder / f"{name}.toml"
        access = {**access_table(self._broker, name, port), **config.get("broker", {})}
        write_private(path, toml({**config, "broker": access}))
        arguments = module_command("fedtide", command, "--config", str(path), python=python)
        return Child(name, arguments, self.folder / f"{name}.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        children = (self.coordinator, *self.devices.values())
        for child in children:
            child.ask_to_stop()
        for child in children:
            child.stop()


def access_table(broker: Broker, user: str, port: int = 0) -> dict[str, Any]:
    """The [broker] table with which `user` reaches this broker; `port` that of a proxy."""
    access = broker.access(user, port=port)
    return {
        "host": access.host,
        "port": access.port,
        "protocol": access.protocol,
        "username": user,
        "password_file": str(access.password_file),
        "reconnect_ms_max": access.reconnect_ms_max,
    }


def toml(config: Mapping[str, Any]) -> str:
    """TOML of numbers, strings and one level of tables; JSON's scalars are TOML's."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in config.items() if not isinstance(v, Mapping)]
    for name, table in config.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Return when a condition on other processes holds.

    Raises:
        FedtideError: it did not within the time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise FedtideError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.01)  # between two looks at another process


def wait_for_log(child: Child, text: str, timeout_s: float, after: int = 0) -> None:
    """Return when a process has said `text`, behind the first `after` characters of its log.

    Raises:
        ProcessError: it did not within the time, or has ended; with the end of its log.
    """

    def has_said() -> bool:
        code = child.exit_code()  # looked at first: what it said last counts
        if text in child.log()[after:]:
            return True
        if code is not None:
            raise ProcessError(f"{child.name} ended with code {code} before it said {text!r}")
        return False

    try:
        wait_for(has_said, f"{child.name}: {text!r}", timeout_s)
    except FedtideError as exc:
        raise ProcessError(f"{exc}. The end of {child.log_path}:\n{child.log_tail()}") from None
