"""What each run did, gathered in `results/faults.json` when FEDTIDE_SAVE_FAULTS is set."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_RECORDS: dict[str, dict[str, Any]] = {}
_SUMS = ("runs", "kills", "faults", "models", "accepted", "abandoned", "lost", "counted_twice",
         "tracebacks", "cuts_replayed", "extra_bytes")  # fmt: skip

Record = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Databases are closed by the thread that opened them, not by whichever frees them later."""
    yield
    gc.collect()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Keep what this test counted and measured."""

    def keep(figures: dict[str, Any]) -> None:
        command = f"pytest {request.node.path.relative_to(request.config.rootpath)}"
        _RECORDS[request.node.name.removeprefix("test_")] = {
            "runs": 1,
            "command": command,
            "load": os.getloadavg()[0],
            **figures,
        }

    return keep


def pytest_sessionfinish() -> None:
    """One file for all of it; tests that did not run this time keep their last record."""
    if not os.environ.get("FEDTIDE_SAVE_FAULTS") or not _RECORDS:
        return
    from benchmarks.measurement import RESULTS, save

    path = RESULTS / "faults.json"
    earlier = json.loads(path.read_text())["samples"] if path.exists() else {}
    records = {**earlier, **_RECORDS}
    figures: dict[str, Any] = {
        name: sum(record.get(name, 0) for record in records.values()) for name in _SUMS
    }
    delays: dict[str, list[float]] = {}
    for record in records.values():
        for name, values in record.get("delays_s", {}).items():
            delays.setdefault(name, []).extend(values)
    figures["delays_s"] = {
        name: {
            "count": len(values),
            "median": round(sorted(values)[len(values) // 2], 3),
            "max": round(max(values), 3),
        }
        for name, values in delays.items()
        if values
    }
    save("faults", figures, dict(sorted(records.items())))
