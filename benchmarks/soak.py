"""Does anything grow in an hour of churn? Memory, file descriptors, threads, disk, and the books.

    python -m benchmarks.soak --minutes 60

A real Mosquitto, a coordinator, and twenty devices in four processes (`benchmarks.soak_clients`),
a round every few seconds. Processes of devices are killed (-9) and started again all the time, the
coordinator and the broker six times in the run each. Every ten seconds the memory, descriptors,
threads and disk of each are read. At the end the churn stops, two more rounds must succeed, every
process must end in good order, and from outside:

- every model in the store is what its updates give, none of which is counted twice;
- every receipt that was overheard is in the books, and every update that a device made has a
  verdict there, waits in its outbox, or was answered;
- no log has a traceback; the most that a process takes is the same in both halves of the run.

What does grow is named: the store keeps every model and every update, and says how much a round.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.load_fleet import write_bundle
from benchmarks.measurement import pss_bytes, save
from demo.brokers import COORDINATOR, HOST, OBSERVER, Broker
from demo.local import LocalFederation, wait_for
from demo.processes import Child
from fedtide.launch import module_command
from fedtide.messages import Envelope, Receipt, decode
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Connected, LinkEvent, Received
from tests.faults.checker import check_logs, check_receipts, check_store, outbox

ELEMENTS = 20_000
PROCESSES, DEVICES_EACH = 4, 5
TRAIN_MS = (1_000, 3_000)
SAMPLE_S, CLIENT_KILL_S = 10.0, 15.0
KILLS = 6
"""Of the coordinator, and of the broker, in the whole run."""
WAIT_S = 120.0
MB = 1e6
MEMORY_GROWTH_MAX_MB = 6.0
DESCRIPTORS_GROWTH_MAX = 4
CLIENT_DISK_GROWTH_MAX_MB = 1.0


class Overheard:
    """Receipts, as the broker's observer hears them."""

    def __init__(self, broker: Broker, federation: str) -> None:
        self._topics = Topics(federation)
        self.receipts: set[tuple[str, str, str]] = set()
        self.link = MqttTransport(broker.access(OBSERVER), "soak-observer", self._deliver)
        self.link.start()

    def _deliver(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            self.link.subscribe([self._topics.down("+")])
        elif isinstance(event, Received):
            said = decode(event.payload)
            if isinstance(said, Envelope) and isinstance(said.body, Receipt):
                device = event.topic.rsplit("/", maxsplit=1)[1]
                self.receipts.add((device, said.body.update_id, said.body.verdict))


class Soak:
    """The processes, and what is done to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        groups = [[f"device-{p}-{d}" for d in range(DEVICES_EACH)] for p in range(PROCESSES)]
        names = [name for group in groups for name in group]
        self.broker = Broker("mosquitto", folder / "broker", (COORDINATOR, *names))
        self.federation = LocalFederation(folder / "run", self.broker, "soak")
        self.coordinator = self.federation.add_coordinator(
            write_bundle(folder / "bundle", ELEMENTS),
            rounds={
                "count": 1_000_000, "cohort_size": 8, "over_selection": 1.25, "quorum": 4,
                "devices_min": 5, "collect_ms": 15_000, "back_off_ms": 500,
                "abandoned_max": 1_000_000,
            },
            history={"rounds_kept": 1_000_000},  # all of them are recomputed in the end
        )  # fmt: skip
        self.clients = [self._client(number, group) for number, group in enumerate(groups)]
        self.devices = [folder / "devices" / name for name in names]
        self.kills = {"clients": 0, "coordinator": 0, "broker": 0}

    def _client(self, number: int, names: list[str]) -> Child:
        config = {
            "federation": "soak",
            "folder": str(self.folder / "devices"),
            "devices": names,
            "passwords": str(self.broker.folder),
            "train_ms": TRAIN_MS,
            "broker": {"host": HOST, "port": self.broker.port, "reconnect_ms_max": 2_000},
        }
        path = self.folder / f"clients-{number}.json"
        path.write_text(json.dumps(config))
        command = module_command("benchmarks.soak_clients", str(path), python=sys.executable)
        return Child(f"clients-{number}", command, self.folder / f"clients-{number}.log")

    def churn(self, seconds: float, on_sample: Callable[[float], None]) -> None:
        """Kill and start again, and sample, for so long."""
        started = time.monotonic()
        every = {
            "sample": min(SAMPLE_S, seconds / 12),
            "clients": CLIENT_KILL_S,
            "coordinator": seconds / (KILLS + 1),
            "broker": seconds / (KILLS + 1),
        }
        # Not at the same moment: the broker half an interval later.
        due = {name: started + wait for name, wait in every.items()}
        due["broker"] += every["broker"] / 2
        due["sample"] = started
        while (now := time.monotonic()) - started < seconds:
            name = min(due, key=lambda key: due[key])
            if due[name] > now:
                time.sleep(min(due[name] - now, 1.0))
                self.check()
                continue
            due[name] = now + every[name]
            if name == "sample":
                on_sample(now - started)
            else:
                getattr(self, f"_kill_{name}")()
                self.kills[name] += 1

    def _kill_clients(self) -> None:
        child = self.random.choice(self.clients)
        child.kill()
        time.sleep(self.random.uniform(0.2, 3.0))
        child.start()

    def _kill_coordinator(self) -> None:
        self.coordinator.kill()
        time.sleep(self.random.uniform(0.2, 2.0))
        self.coordinator.start()

    def _kill_broker(self) -> None:
        # In turn with its state and as a power cut would.
        if self.kills["broker"] % 2:
            self.broker.kill()
        else:
            self.broker.stop()
        time.sleep(self.random.uniform(0.2, 2.0))
        self.broker.start()

    def check(self) -> None:
        """Nobody has ended by himself."""
        for child in (self.coordinator, *self.clients):
            child.check()

    def sample(self) -> dict[str, Any]:
        """What everybody takes now."""
        found: dict[str, Any] = {"rounds": self.rounds()}
        processes = {"coordinator": self.coordinator.process_id, "broker": self.broker.process_id}
        processes |= {child.name: child.process_id for child in self.clients}
        for name, process_id in processes.items():
            if process_id is not None:
                found[name] = taken_by(process_id)
        state = self.federation.state_dir
        found["disk_mb"] = {
            "coordinator database": size_of(state.glob("coordinator.db*")) / MB,
            "coordinator blobs": size_of(state.glob("blobs/*")) / MB,
            "coordinator arriving": size_of(state.glob("partial/*")) / MB,
            "devices": size_of(
                path for path in (self.folder / "devices").rglob("*") if path.name != "made"
            ) / MB,
            "broker": size_of((self.broker.folder / "store").rglob("*")) / MB,
            "logs": size_of(self.folder.rglob("*.log")) / MB,
        }  # fmt: skip
        return found

    def rounds(self) -> int:
        """Models made."""
        path = self.federation.state_dir / "coordinator.db"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            try:
                (version,) = database.execute("SELECT MAX(version) FROM models").fetchone()
            except sqlite3.OperationalError:
                return 0  # not made yet
        return int(version or 0)

    def unaccounted(self, receipts: set[tuple[str, str, str]]) -> list[str]:
        """Updates that were made and of which nobody knows anything."""
        path = self.federation.state_dir / "coordinator.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            known = set(database.execute("SELECT device_id, update_id FROM updates"))
        known |= {(device, update_id) for device, update_id, _ in receipts}
        lost = []
        for folder in self.devices:
            owed = {update["update_id"] for update in outbox(folder)}
            made = (folder / "made").read_text().splitlines() if (folder / "made").exists() else []
            for update_id, round_id in map(json.loads, made):
                if update_id not in owed and (folder.name, update_id) not in known:
                    lost.append(f"{folder.name}: update of round {round_id} is unaccounted for")
        return lost


def taken_by(process_id: int) -> dict[str, float]:
    """Memory, descriptors and threads of a process."""
    process = Path(f"/proc/{process_id}")
    status = (process / "status").read_text()
    return {
        "pss_mb": round(pss_bytes(process_id) / MB, 2),
        "rss_mb": round(int(status.split("VmRSS:")[1].split()[0]) * 1024 / MB, 2),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(status.split("Threads:")[1].split()[0]),
    }


def size_of(paths: Any) -> int:
    """Bytes of these files; those that go meanwhile count nothing."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def growth(samples: list[dict[str, Any]], *keys: str) -> float:
    """The most in the second half less the most in the first. Lower values are those of processes
    that have just been started, or of a broker whose clients are not back yet."""
    values = []
    for sample in samples:
        value: Any = sample
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(-math.inf if value is None else float(value))
    half = len(values) // 2
    return round(max(values[half:]) - max(values[:half]), 3)


def judge(soak: Soak, samples: list[dict[str, Any]], heard: set[tuple[str, str, str]]) -> Any:
    """Figures, and what is wrong."""
    state = soak.federation.state_dir
    findings = [
        *check_store(state),
        *check_receipts(state, heard),
        *soak.unaccounted(heard),
        *check_logs(soak.folder.rglob("*.log")),
    ]
    figures: dict[str, Any] = {}
    for name in ("coordinator", "broker", *(child.name for child in soak.clients)):
        for key, limit in (
            ("pss_mb", MEMORY_GROWTH_MAX_MB),
            ("descriptors", DESCRIPTORS_GROWTH_MAX),
            ("threads", 1),
        ):
            grown = figures[f"{name} {key} growth"] = growth(samples, name, key)
            figures[f"{name} {key} max"] = max(s[name][key] for s in samples if name in s)
            if grown > limit:
                findings.append(f"{name}: {key} has grown by {grown}")
    for key in samples[0]["disk_mb"]:
        figures[f"disk growth mb {key}"] = growth(samples, "disk_mb", key)
    if figures["disk growth mb devices"] > CLIENT_DISK_GROWTH_MAX_MB:
        findings.append("the devices' disks have grown")
    rounds = samples[-1]["rounds"] - samples[0]["rounds"]
    for key in ("coordinator database", "coordinator blobs"):
        more = samples[-1]["disk_mb"][key] - samples[0]["disk_mb"][key]
        figures[f"{key} kb a round"] = round(1e3 * more / max(1, rounds), 1)
    return figures, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="keep everything here; default: nothing is kept"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(folder, options.seed)
        samples: list[dict[str, Any]] = []

        def on_sample(at_s: float) -> None:
            samples.append({"at_s": round(at_s, 1), **soak.sample()})
            print(json.dumps(samples[-1]), flush=True)

        started = time.monotonic()
        with soak.broker, soak.federation:
            overheard = Overheard(soak.broker, "soak")
            try:
                for child in (soak.coordinator, *soak.clients):
                    child.start()
                wait_for(lambda: soak.rounds() > 0, "the first round", WAIT_S)
                soak.churn(60 * options.minutes, on_sample)
                before = soak.rounds()
                wait_for(lambda: soak.rounds() >= before + 2, "two more rounds", WAIT_S)
                codes = {}
                for child in (*soak.clients, soak.coordinator):
                    child.ask_to_stop()
                    codes[child.name] = child.wait(WAIT_S)
            finally:
                overheard.link.stop()
                for child in soak.clients:
                    child.stop()
            rounds = soak.rounds()
        figures, findings = judge(soak, samples, overheard.receipts)
        findings += [f"{name} ended with {code}" for name, code in codes.items() if code]
    verdicts = [verdict for _, _, verdict in overheard.receipts]
    save(
        "soak",
        {
            "minutes": round((time.monotonic() - started) / 60, 1),
            "devices": PROCESSES * DEVICES_EACH,
            "rounds": rounds,
            "receipts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
            "kills": soak.kills,
            "findings": findings,
            **figures,
        },
        {"samples": samples},
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
