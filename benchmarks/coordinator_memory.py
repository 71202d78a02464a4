"""How much memory does the coordinator need for 10, 100 and 1,000 updates of 6.65 MB in one round?

A coordinator process and a Mosquitto for each number; one other process speaks for all devices
(`benchmarks.load_fleet`). `window`: a few uploads at a time; `interleaved`: all of them at once,
chunk by chunk in turns, the worst that a fleet can do. The peak is the kernel's own high-water
mark (VmHWM); PSS is sampled every half a second. From the first offer to the last receipt, then
until the next model is stored. The disk of the store is what 1,000 updates take: 6.7 GB.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.load_fleet import FLEET, LoadFleet, admit_fleet, chunks_of, write_bundle
from benchmarks.measurement import pss_bytes, save
from demo.brokers import COORDINATOR, Broker
from demo.local import LocalFederation, wait_for

ELEMENTS = 1_663_370
COUNTS = (10, 100, 1000)
WINDOW = 4
WAIT_S = 1800.0
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--ways", default="window,interleaved")
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    parser.add_argument("--folder", type=Path, help="for the stores; default: a temporary one")
    options = parser.parse_args()
    counts = [int(text) for text in options.counts.split(",")]
    figures: dict[str, Any] = {"elements": options.elements, "window": WINDOW}
    samples: dict[str, Any] = {}
    for way in options.ways.split(","):
        for count in counts:
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                at_once = WINDOW if way == "window" else count
                key = f"{way} {count}"
                figures[key], samples[key] = measure(Path(name), count, at_once, options.elements)
                print(key, figures[key], flush=True)
        peaks = [figures[f"{way} {count}"]["peak_mb"] for count in counts]
        figures[f"{way} largest over smallest peak"] = round(max(peaks) / min(peaks), 3)
    save("coordinator_memory", figures, samples)


def measure(
    folder: Path, count: int, at_once: int, elements: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and PSS samples of one round of `count` devices."""
    bundle = write_bundle(folder / "bundle", elements)
    broker = Broker("mosquitto", folder / "broker", (COORDINATOR, FLEET))
    admit_fleet(broker)
    with broker, LocalFederation(folder / "run", broker) as federation:
        size = dict.fromkeys(("cohort_size", "devices_min", "quorum"), count)
        child = federation.add_coordinator(
            bundle, rounds={"count": 1, "collect_ms": 3_600_000, **size}
        )
        child.start()
        process_id = child.process_id
        assert process_id is not None
        time.sleep(3)
        idle = pss_bytes(process_id)
        fleet = LoadFleet(broker, federation.name, count, elements)
        with Sampler(process_id) as sampler:
            seconds = fleet.run(at_once, WAIT_S)
            uploaded_peak = high_water(process_id)
            started = time.monotonic()
            database = federation.state_dir / "coordinator.db"
            wait_for(lambda: models(database) > 1, "the aggregate", WAIT_S)
            aggregation_s = time.monotonic() - started
            peak = high_water(process_id)
        verdicts = {receipt.verdict for receipt in fleet.receipts.values()}
        assert verdicts == {"accepted"}, verdicts
        disk = sum(f.stat().st_size for f in federation.state_dir.rglob("*") if f.is_file())
        broker_peak = high_water(broker.process_id or 0)
        child.kill()
    shutil.rmtree(folder / "run")
    return {
        "idle_pss_mb": round(idle / MB, 1),
        "peak_mb": round(peak / MB, 1),
        "peak_before_aggregation_mb": round(uploaded_peak / MB, 1),
        "pss_median_mb": round(statistics.median(sampler.samples) / MB, 1),
        "pss_peak_mb": round(max(sampler.samples) / MB, 1),
        "uploads_s": round(seconds, 2),
        "updates_per_second": round(count / seconds, 2),
        "mb_per_second": round(4 * elements * count / seconds / MB, 1),
        "aggregation_s": round(aggregation_s, 2),
        "chunks_sent_again": fleet.chunks_sent - count * chunks_of(elements),
        "offers": fleet.offers_sent,
        "disk_mb": round(disk / MB, 1),
        "broker_peak_mb": round(broker_peak / MB, 1),
    }, {"pss_mb": [round(sample / MB, 1) for sample in sampler.samples]}


class Sampler:
    """PSS of a process, twice a second, in a thread of its own."""

    def __init__(self, process_id: int) -> None:
        self.samples: list[int] = []
        self._process_id = process_id
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._done.is_set():
            self.samples.append(pss_bytes(self._process_id))
            self._done.wait(0.5)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def high_water(process_id: int) -> int:
    """The kernel's own high-water mark of a process's memory, in bytes."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def models(path: Path) -> int:
    """Models in a coordinator's store."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        (count,) = database.execute("SELECT COUNT(*) FROM models").fetchone()
        return int(count)
    finally:
        database.close()


if __name__ == "__main__":
    main()
