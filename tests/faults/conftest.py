"""What each run did, gathered in `results/faults.json` when FEDTIDE_SAVE_FAULTS is set."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

_RECORDS: dict[str, dict[str, Any]] = {}
_SUMS = ("runs", "kills", "faults", "models", "accepted", "abandoned", "lost", "counted_twice",
         "tracebacks", "cuts_replayed")  # fmt: skip

Record = Callable[[dict[str, Any]], None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Keep what this test counted and measured."""

    def keep(figures: dict[str, Any]) -> None:
        _RECORDS[request.node.name.removeprefix("test_")] = {"runs": 1, **figures}

    return keep


def pytest_sessionfinish() -> None:
    """One file for all of it."""
    if not os.environ.get("FEDTIDE_SAVE_FAULTS") or not _RECORDS:
        return
    from benchmarks.measurement import save

    figures: dict[str, Any] = {
        name: sum(record.get(name, 0) for record in _RECORDS.values()) for name in _SUMS
    }
    delays: dict[str, list[float]] = {}
    for record in _RECORDS.values():
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
    save("faults", figures, _RECORDS)
