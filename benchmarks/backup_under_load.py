"""What does a backup cost a federation that goes on meanwhile?

    python -m benchmarks.backup_under_load [--elements 250000] [--pairs 5]

A coordinator process and a Mosquitto; one other process speaks for ten devices, each of which sends
an update of a model's size in every round (`benchmarks.load_fleet`). When fifty rounds of updates
are on disk, times without a backup and times with backups one after another alternate, each as
long as a backup takes; a round's duration is what the coordinator's database says.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from itertools import count
from pathlib import Path
from queue import Empty
from typing import Any

from benchmarks.load_fleet import FLEET, LoadFleet, admit_fleet, write_bundle
from benchmarks.measurement import save
from demo.brokers import COORDINATOR, Broker
from demo.local import LocalFederation, wait_for
from fedtide.messages import Receipt
from fedtide.transport import Arriving, LinkEvent

DEVICES, ROUNDS_BEFORE, WAIT_S, QUIET_S = 10, 50, 900.0, 5.0


class EndlessFleet(LoadFleet):
    """Every device answers every round, with other content each time."""

    def __init__(self, broker: Broker, federation: str, elements: int) -> None:
        super().__init__(broker, federation, DEVICES, elements)
        self._fresh = count(DEVICES)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self.rejected: list[str] = []

    def _handle(self, event: LinkEvent) -> None:
        if not isinstance(event, Arriving):
            super()._handle(event)

    def _heard(self, device: str, body: object) -> None:
        super()._heard(device, body)
        if isinstance(body, Receipt) and self.receipts.pop(device, None) is not None:
            self._numbers[device] = next(self._fresh)
            if body.verdict == "rejected":
                self.rejected.append(body.reason)

    def _answer(self) -> None:
        self._link.start()
        while not self._ended.is_set():
            self._begin(DEVICES, time.monotonic())
            self._send()
            try:
                self._handle(self._inbox.get(timeout=0.2))
                while True:
                    self._handle(self._inbox.get_nowait())
            except Empty:
                pass
        self._link.stop()

    @property
    def alive(self) -> bool:
        """Whether it goes on answering."""
        return self._thread.is_alive()

    def __enter__(self) -> EndlessFleet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


class Watched:
    """What a coordinator's database says of its rounds."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "coordinator.db"

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as database:
            try:
                return database.execute(sql, values).fetchall()
            except sqlite3.OperationalError:
                return []

    def newest(self) -> int:
        rows = self.query("SELECT COALESCE(MAX(version), 0) FROM models")
        return int(rows[0][0]) if rows else 0

    def rounds(self, since_ms: float, until_ms: float) -> list[int]:
        """Durations of the rounds that ended in this time, ms."""
        rows = self.query(
            "SELECT closed_at_ms - opened_at_ms FROM rounds WHERE outcome = 'done'"
            " AND closed_at_ms BETWEEN ? AND ?",
            since_ms,
            until_ms,
        )
        return [duration for (duration,) in rows]


def back_up(config: Path, out: Path) -> float:
    """Seconds that the command takes, its start included."""
    words = [sys.executable, "-m", "fedtide", "server", "backup"]
    started_s = time.monotonic()
    subprocess.run([*words, "--config", str(config), "--out", str(out)], check=True)
    return time.monotonic() - started_s


def measure(folder: Path, elements: int, pairs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle = write_bundle(folder / "bundle", elements)
    broker = Broker("mosquitto", folder / "broker", (COORDINATOR, FLEET))
    admit_fleet(broker)
    out = folder / "state.backup"
    samples: dict[str, list[Any]] = {"without": [], "with": [], "backup_s": []}
    with broker, LocalFederation(folder / "run", broker) as federation:
        size = dict.fromkeys(("cohort_size", "devices_min", "quorum"), DEVICES)
        rounds = {"count": 1_000_000, "collect_ms": 600_000, **size}
        child = federation.add_coordinator(
            bundle, rounds=rounds, history={"rounds_kept": ROUNDS_BEFORE}
        )
        child.start()
        # It listens from then on; the fleet says hello once.
        wait_for(lambda: "waiting:" in child.log_path.read_text(), "the coordinator", WAIT_S)
        watched = Watched(federation.state_dir)
        config = federation.folder / f"{COORDINATOR}.toml"
        with EndlessFleet(broker, federation.name, elements) as fleet:
            wait_for(lambda: watched.newest() >= ROUNDS_BEFORE or not fleet.alive, "rounds", WAIT_S)
            length_s = max(QUIET_S, back_up(config, out))
            for _ in range(pairs):
                for name in ("without", "with"):
                    began_s = time.time()
                    if name == "with":
                        while time.time() - began_s < length_s:
                            samples["backup_s"].append(round(back_up(config, out), 2))
                    else:
                        time.sleep(length_s)
                    ended_s = time.time()
                    durations = watched.rounds(began_s * 1000, ended_s * 1000)
                    samples[name].append(
                        {"seconds": round(ended_s - began_s, 2), "rounds_ms": durations}
                    )
            assert fleet.alive
            assert fleet.rejected == [], fleet.rejected[:3]
        abandoned = watched.query("SELECT COUNT(*) FROM rounds WHERE outcome = 'abandoned'")[0][0]
        child.stop()
    backup_mb = out.stat().st_size / 1e6
    figures: dict[str, Any] = {
        "model_mb": round(4 * elements / 1e6, 2),
        "devices": DEVICES,
        "backup_mb": round(backup_mb, 1),
        "backup_s": statistics.median(samples["backup_s"]),
        "backups": len(samples["backup_s"]),
        "abandoned_rounds": abandoned,
        "load_average": round(os.getloadavg()[0], 1),
    }
    for name in ("without", "with"):
        durations = sorted(ms for one in samples[name] for ms in one["rounds_ms"])
        seconds = sum(one["seconds"] for one in samples[name])
        figures[f"rounds_per_minute_{name}"] = round(60 * len(durations) / seconds, 1)
        figures[f"round_ms_median_{name}"] = round(statistics.median(durations))
        figures[f"round_ms_longest_{name}"] = durations[-1]
    return figures, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=250_000)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures, samples = measure(Path(name), options.elements, options.pairs)
    save("backup_under_load", figures, samples)


if __name__ == "__main__":
    main()
