"""How long does a simulated federation take, timing only, on one core?

    python -m benchmarks.fleet_scale [--devices 1000,3000,10000] [--rounds 100]

A hundred rounds with a tenth of the fleet wanted and 1.3 times as many invited, devices that come
and go, power cuts in every phase (10% of the tasks), all on record. Each size runs in a process of
its own, bound to one core. Where others use that core too, the wall time is theirs as well: the
processor time says what the simulation took. A quarter of the rounds asks whether memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measurement import save

TARGET_S, TARGET_MB = 60.0, 200.0


def scenario_text(devices: int, rounds: int) -> str:
    wanted = devices // 10
    return f"""
name = "fleet-scale"
seed = 1
hours_max = 1000
[fleet]
devices = {devices}
group = [{{ profile = "pi-4", speed_spread = 0.3 }}]
[availability]
kind = "churn"
on_s = 7200.0
off_s = 3600.0
[dropouts]
before_download = 0.02
in_training = 0.04
before_upload = 0.02
during_upload = 0.02
back_after_s = 600.0
[rounds]
count = {rounds}
cohort_size = {wanted}
over_selection = 1.3
devices_min = {wanted}
quorum = {wanted // 2}
collect_ms = 600_000
[plan]
epochs = 5
"""


def measure(devices: int, rounds: int) -> dict[str, Any]:
    """In this process."""
    from simulator.fleet.policy_run import run_policy
    from simulator.fleet.record import Header, Recorder
    from simulator.fleet.scenario import policies, read_scenario

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        path, record = Path(folder) / "scenario.toml", Path(folder) / "record.jsonl.gz"
        path.write_text(scenario_text(devices, rounds))
        scenario = read_scenario(path)
        kept: list[Recorder] = []

        @contextmanager
        def sink(header: Header) -> Any:
            with Recorder(record, header) as recorder:
                kept.append(recorder)
                yield recorder

        started_s, processor_s = time.perf_counter(), time.process_time()
        run_policy(scenario, policies(scenario)[0], sink)
        wall_s, processor_s = time.perf_counter() - started_s, time.process_time() - processor_s
        totals = kept[0].totals
        return {
            "devices": devices,
            "rounds": totals.rounds_done,
            "wall_s": round(wall_s, 2),
            "processor_s": round(processor_s, 2),
            "events": totals.events,
            "tasks": totals.tasks,
            "dropouts": sum(totals.dropped.values()),
            "virtual_hours": round(totals.at_ms / 3_600_000, 3),
            "record_bytes": record.stat().st_size,
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, 1),
            "digest": kept[0].digest,
        }


def apart(devices: int, rounds: int) -> dict[str, Any]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.fleet_scale", "--one", f"{devices},{rounds}"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1000,3000,10000")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        print(json.dumps(measure(*map(int, parsed.one.split(",")))))
        return 0
    sizes = [int(word) for word in parsed.devices.split(",")]
    short = apart(sizes[-1], max(1, parsed.rounds // 4))
    samples = [apart(devices, parsed.rounds) for devices in sizes]
    largest = samples[-1]
    figures = {
        f"{one['devices']}_devices_{key}": one[key]
        for one in samples
        for key in ("wall_s", "processor_s", "events", "peak_mb")
    }
    figures["peak_mb_of_a_quarter_of_the_rounds"] = short["peak_mb"]
    figures["load_average"] = round(os.getloadavg()[0], 1)
    save("fleet_scale", figures, {"runs": [short, *samples]})
    return 0 if largest["wall_s"] <= TARGET_S and largest["peak_mb"] <= TARGET_MB else 1


if __name__ == "__main__":
    sys.exit(main())
