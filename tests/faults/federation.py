"""A federation of real processes that are killed, starved and cut off, and what came of it.

A coordinator, three devices on stock onnxruntime, a real Mosquitto, an observer at the broker.
`walk` lets processes die at named steps, one after the other, and starts each of them again;
`finish` ends the federation in good order and lets the outside checker look at everything.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import numpy as np

from demo.brokers import COORDINATOR, Broker, child_environment, find_broker
from demo.local import LocalFederation, wait_for
from demo.processes import Child
from fedtide.errors import FedtideError
from fedtide.failpoints import VARIABLE
from fedtide.messages import Receipt, Status, Task, Want, Welcome
from tests import bundles
from tests.faults.checker import (
    check_device,
    check_logs,
    check_receipts,
    check_store,
    leftovers,
)
from tests.faults.observer import Observer

DEVICE_PYTHON = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
DEVICES = ("alpha", "beta", "gamma")
PACKET_BYTES_MAX = 20_000
"""Of the broker: one block of 16 KiB a chunk, five chunks a transfer."""
WAIT_S = 60.0
"""Longest wait for anything in these tests."""
STEP_S = 30.0
"""A process that is armed must reach its step within this time."""
KILLED = -signal.SIGKILL


def wide_bundle() -> Path:
    """The bundle of `tests/faults/model.py`, exported once."""
    folder = bundles.CACHE / f"wide_mlp-{bundles._key()}"
    bundles.CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            source = f"{Path(__file__).parent / 'model.py'}:wide_mlp"
            python = bundles.export_python()
            assert python is not None, "run make test, or set FEDTIDE_EXPORT_PYTHON"
            subprocess.run(
                [python, "-m", "fedtide", "export", source, "--out", folder],
                cwd=bundles.ROOT,
                env={**child_environment(), "PYTHONPATH": str(bundles.ROOT)},
                check=True,
                capture_output=True,
            )
    return folder


class Walk:
    """A process on its way through steps at which it dies."""

    def __init__(self, child: Child, steps: Sequence[str]) -> None:
        self.child = child
        self.steps = list(steps)
        self.kills: list[str] = []
        """Where it died, in order."""
        self.births_s: list[float] = []
        """When it was started again."""
        self.ended: int | None = None
        """Exit code, if it ended in good order."""
        self._since_s = 0.0

    @property
    def armed(self) -> str | None:
        """Where it will die next."""
        return self.steps[len(self.kills)] if len(self.kills) < len(self.steps) else None

    def start(self) -> None:
        """Start it, armed with its next step."""
        step = self.armed
        self._since_s = time.monotonic()
        self.child.start(**({} if step is None else {VARIABLE: step}))

    def tend(self) -> bool:
        """Start it again if it has died; whether all its steps are behind it.

        Raises:
            FedtideError: it ended in another way, or does not reach its step.
        """
        code = self.child.exit_code()
        if code is None and self.armed is None:
            return True
        if code is None:
            if time.monotonic() - self._since_s > STEP_S:
                raise FedtideError(
                    f"{self.child.name} did not reach {self.armed!r}:\n{self.child.log_tail()}"
                )
            return False
        if self.ended is not None:
            return True
        if code == 0 and self.armed is None:
            self.ended = code
            return True
        if code != KILLED or self.armed is None:
            raise FedtideError(
                f"{self.child.name} ended with {code}, armed with {self.armed!r}:\n"
                f"{self.child.log_tail(40)}"
            )
        self.kills.append(self.armed)
        self.child.kill()
        self.births_s.append(time.monotonic())
        self.start()
        return self.armed is None


class FaultFederation:
    """See the module. A context manager; `broker_lines` replace those of the configuration."""

    def __init__(
        self,
        folder: Path,
        *,
        rounds: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
        tables: Mapping[str, Any] | None = None,
        device_tables: Mapping[str, Any] | None = None,
        broker_lines: Mapping[str, str] | None = None,
        devices: Sequence[str] = DEVICES,
        ports: Mapping[str, int] | None = None,
        broker: Broker | None = None,
    ) -> None:
        self.folder = folder
        self.broker = broker or make_broker(folder / "broker", devices, broker_lines or {})
        self.local = LocalFederation(folder / "run", self.broker)
        self._rounds: dict[str, Any] = {
            "count": 1000,
            "cohort_size": len(devices),
            "devices_min": 1,
            "quorum": 1,
            "collect_ms": 15_000,
            "back_off_ms": 100,
            "abandoned_max": 1000,
            **(rounds or {}),
        }
        self._plan = {"epochs": 2, "batch_size": 20, "learning_rate": 0.05, **(plan or {})}
        self._tables = {"hello_ms": 2_000, **(tables or {})}
        self._add_coordinator()
        for number, device in enumerate(devices):
            self.local.add_device(
                device,
                make_data(folder / f"{device}.npz", number),
                DEVICE_PYTHON,
                port=(ports or {}).get(device, 0),
                **{"training": {"lost_ms_max": 1}, **(device_tables or {})},
            )
        self._stack = ExitStack()

    def _add_coordinator(self) -> None:
        self.local.add_coordinator(
            wide_bundle(), rounds=self._rounds, plan=self._plan, **self._tables
        )

    @property
    def coordinator(self) -> Child:
        return self.local.coordinator

    @property
    def devices(self) -> dict[str, Child]:
        return self.local.devices

    @property
    def store(self) -> Path:
        return self.local.state_dir

    def __enter__(self) -> Self:
        if self.broker.process_id is None:
            self.broker.start()
        self._stack.callback(self.broker.stop)
        self.observer = self._stack.enter_context(Observer(self.broker, self.local.name))
        self._stack.enter_context(self.local)
        return self

    def __exit__(self, *error: object) -> None:
        for child in (self.coordinator, *self.devices.values()):
            wake(child)
        self._stack.close()

    # ---- waiting ----

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S
    ) -> float:
        """Seconds until a condition holds; nobody may end unbidden meanwhile.

        Raises:
            FedtideError: it did not come true; with what everybody said last.
        """
        began_s = time.monotonic()
        try:
            wait_for(condition, what, timeout_s)
        except FedtideError as exc:
            children = (self.coordinator, *self.devices.values())
            logs = "\n".join(f"--- {c.name}\n{c.log_tail()}" for c in children)
            raise FedtideError(f"{exc}\n{logs}") from None
        return time.monotonic() - began_s

    def status(self) -> Status:
        """The newest status that was heard."""
        said = [h.body for h in list(self.observer.heard) if isinstance(h.body, Status)]
        return said[-1] if said else Status()

    def rounds_more(self, count: int, timeout_s: float = WAIT_S) -> float:
        """Seconds until so many more models are made, as the status tells."""
        goal = self.status().model_version + count
        return self.wait_until(
            lambda: self.status().model_version >= goal, f"model {goal}", timeout_s
        )

    def goes_on_s(self, since_s: float, timeout_s: float = WAIT_S) -> float:
        """Seconds from a start of the coordinator until it goes on with its round: the first
        task, wish for blocks or receipt that it says, or status of a round that follows."""

        def going() -> list[float]:
            return [
                heard.at_s
                for heard in self.observer.since(since_s)
                if isinstance(heard.body, Task | Want | Receipt) and heard.kind == "down"
            ]

        self.wait_until(lambda: bool(going()), "the round's going on", timeout_s)
        return going()[0] - since_s

    def welcomed_s(self, since_s: float, device: str, timeout_s: float = WAIT_S) -> float:
        """Seconds until this device has been welcomed anew."""

        def welcomes() -> list[float]:
            return [
                heard.at_s
                for heard in self.observer.since(since_s)
                if isinstance(heard.body, Welcome) and heard.device == device
            ]

        self.wait_until(lambda: bool(welcomes()), f"{device}'s return", timeout_s)
        return welcomes()[0] - since_s

    # ---- faults ----

    def walk(self, walks: Sequence[Walk], timeout_s: float = 300.0) -> None:
        """Start everybody, and let those who walk die at each of their steps."""
        walking = {walk.child.name for walk in walks}
        for child in (self.coordinator, *self.devices.values()):
            if child.name not in walking:
                child.start()
        for walk in walks:
            walk.start()

        def tended() -> bool:
            done = [walk.tend() for walk in walks]  # each of them, also where one is not done
            return all(done)

        self.wait_until(tended, "all steps", timeout_s)

    def finish(self, more: int = 2) -> dict[str, Any]:
        """No more faults: `more` rounds, an end in good order, and nothing that is wrong.

        Raises:
            AssertionError: something is lost, counted twice, left over or said as a traceback.
        """
        self.rounds_more(more)
        self.coordinator.stop()
        database = self.store / "coordinator.db"
        done = scalar(database, "SELECT MAX(version) FROM models")
        self._rounds["count"] = done + 1
        self._add_coordinator()
        self.coordinator.start()
        code = self.coordinator.wait(WAIT_S)
        assert code == 0, self.coordinator.log_tail(40)
        return self.verdict()

    def verdict(self) -> dict[str, Any]:
        """Stop everybody and check everything from outside; what was counted."""
        children = (self.coordinator, *self.devices.values())
        for child in children:
            wake(child)
            child.ask_to_stop()
        for child in children:
            child.stop()
        receipts = self.observer.receipts()
        findings = [*check_store(self.store), *check_receipts(self.store, receipts)]
        for name, device in self.devices.items():
            log = device.log_path.read_text(errors="replace")
            findings += check_device(self.local.folder / name, log, self.store)
        findings += check_logs(child.log_path for child in children if child.log_path.exists())
        findings += leftovers(self.local.folder)
        assert not findings, "\n".join(findings)
        database = self.store / "coordinator.db"
        accepted = "FROM updates WHERE verdict = 'accepted' AND payload_bytes > 0"
        return {
            "models": scalar(database, "SELECT MAX(version) FROM models"),
            "accepted": scalar(database, f"SELECT COUNT(*) {accepted}"),
            "abandoned": scalar(
                database, "SELECT COUNT(*) FROM rounds WHERE outcome = 'abandoned'"
            ),
            "lost": 0,
            "counted_twice": 0,
            "tracebacks": 0,
            "uplink_bytes": sum(self.observer.uplink_bytes.values()),
            "payload_bytes": scalar(database, f"SELECT COALESCE(SUM(payload_bytes), 0) {accepted}"),
        }


def make_broker(folder: Path, devices: Sequence[str], lines: Mapping[str, str]) -> Broker:
    """Mosquitto as we recommend it, with a small packet limit and these keys changed."""
    broker = Broker(find_broker("mosquitto"), folder, (COORDINATOR, *devices))
    changed = {"max_packet_size": str(PACKET_BYTES_MAX), **lines}
    path = folder / "mosquitto.conf"
    kept = [line for line in path.read_text().splitlines() if line.split(" ")[0] not in changed]
    path.write_text("\n".join([*kept, *(f"{k} {v}" for k, v in changed.items())]) + "\n")
    return broker


def make_data(path: Path, seed: int) -> Path:
    """60 examples of three classes; a part is held out."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 60)
    x = (np.eye(8)[y] * 2 + rng.normal(size=(60, 8))).astype(np.float32)
    np.savez(path, x=x[:50], y=y[:50], x_held_out=x[50:], y_held_out=y[50:])
    return path


def stop(child: Child) -> None:
    """Let it stand still, as a machine that hangs."""
    if child.process_id is not None:
        os.kill(child.process_id, signal.SIGSTOP)


def wake(child: Child) -> None:
    """Let it go on."""
    if child.process_id is not None and child.exit_code() is None:
        os.kill(child.process_id, signal.SIGCONT)


def scalar(database: Path, sql: str) -> int:
    """One number from the coordinator's database; 0 where there is none."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as opened:
        return int(opened.execute(sql).fetchone()[0] or 0)
