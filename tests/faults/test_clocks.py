"""Wrong wall clocks: the coordinator's jumps between its lives, a device's means nothing at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.brokers import child_environment
from tests.faults.conftest import Record
from tests.faults.federation import FaultFederation, Walk, scalar

pytestmark = pytest.mark.slow

DAY_MS = 86_400_000
JUMPS = {"1970": "at 1000", "in ten years": "by 315360000", "yesterday": "by -86400", "mad": "mad"}
_SITE = '''
"""A wall clock that is wrong, from the first import on; the monotonic one is as it was."""
import os, random, time

_now, _draw = time.time, random.Random(1)
_kind, _, _value = os.environ["WRONG_CLOCK"].partition(" ")
_start = _now()

def _wrong():
    if _kind == "at":
        return float(_value) + _now() - _start
    if _kind == "by":
        return _now() + float(_value)
    return _draw.uniform(0, 4e9)

time.time = _wrong
time.time_ns = lambda: int(_wrong() * 1e9)
'''


def wrong_clock(folder: Path, kind: str) -> dict[str, str]:
    """Environment of a process whose clock is wrong in this way."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(site), child_environment().get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "WRONG_CLOCK": kind}


def test_the_coordinators_clock_jumps_between_its_lives(tmp_path: Path, record: Record) -> None:
    """Killed in the middle of a round each time; the same round or the next goes on."""
    with FaultFederation(tmp_path) as federation:
        walk = Walk(federation.coordinator, ["coordinator: verdict committed=kill@2"] * len(JUMPS))
        federation.walk([walk])
        for kind in (*JUMPS.values(), "by 0"):
            federation.coordinator.kill()
            federation.coordinator.start(**wrong_clock(tmp_path, kind))
            federation.rounds_more(2)
        database = federation.store / "coordinator.db"
        first = scalar(database, "SELECT MIN(opened_at_ms) FROM rounds")
        last = scalar(database, "SELECT MAX(opened_at_ms) FROM rounds")
        assert first < DAY_MS
        assert last > time.time() * 1000 + 3000 * DAY_MS
        record({**federation.finish(), "kills": len(walk.kills), "faults": len(JUMPS) + 1})


def test_devices_need_no_wall_clock(tmp_path: Path, record: Record) -> None:
    """One lives in 1970, one in another year at each look at the clock."""
    with FaultFederation(tmp_path, rounds={"devices_min": 3, "quorum": 3}) as federation:
        looked = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time() < 1e6)"],
            env={**os.environ, **wrong_clock(tmp_path, "at 1000")},
            capture_output=True,
            check=True,
        )
        assert looked.stdout == b"True\n"
        for name, kind in (("alpha", "at 1000"), ("beta", "mad"), ("gamma", "by 315360000")):
            federation.devices[name].start(**wrong_clock(tmp_path, kind))
        federation.coordinator.start()
        federation.rounds_more(2)
        figures = federation.finish()
        assert figures["abandoned"] == 0
        record({**figures, "faults": 3})
