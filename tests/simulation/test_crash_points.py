"""Every crash point of both sides, once and twice in a row, in both modes."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest

from coordinator.aggregate_job import Aggregated
from coordinator.ledger import Ledger
from coordinator.round_machine import RoundAggregated
from simulator.faults.sweep import CrashPoint, crash_at, crash_points

SEED = 2


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_a_process_may_die_at_every_step(buffered: bool, twice: bool) -> None:
    points = list(crash_points(SEED, buffered=buffered, twice=twice))
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        outcomes = pool.map(crash_at, points, chunksize=8)
    assert len(points) > 100
    failed = [(p, o.failure) for p, o in zip(points, outcomes, strict=True) if o.failure]
    assert failed == []
    assert all("2 rounds are done" in outcome.ended for outcome in outcomes)


def test_a_commit_in_two_parts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the new model is committed before the state that follows from it."""

    def add_model(self: Ledger, result: Aggregated, at_ms: int) -> Any:
        with self._store.transaction():
            version = self.state.model_version + 1
            self._store.add_model(version, result.model, result.round_id, at_ms)
        return self.apply(RoundAggregated(result.round_id), at_ms)

    monkeypatch.setattr(Ledger, "add_model", add_model)
    found = crash_at(CrashPoint(SEED, False, "", ())).failure
    assert found is not None
    assert (found.kind, "recomputed" in found.text) == ("safety", True), found
