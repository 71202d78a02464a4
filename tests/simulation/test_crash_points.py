"""Every crash point of both sides, once and twice in a row, in both modes."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from coordinator.config import RoundsConfig
from simulator.sweep import crash_at, crash_points

SEED = 2
MODES = [False, True] if "mode" in RoundsConfig.__struct_fields__ else [False]


@pytest.mark.parametrize("buffered", MODES)
@pytest.mark.parametrize("twice", [False, True])
def test_a_process_may_die_at_every_step(buffered: bool, twice: bool) -> None:
    points = list(crash_points(SEED, buffered=buffered, twice=twice))
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        outcomes = pool.map(crash_at, points, chunksize=8)
    assert len(points) > 100
    failed = [(p, o.failure) for p, o in zip(points, outcomes, strict=True) if o.failure]
    assert failed == []
    assert all("2 rounds are done" in outcome.ended for outcome in outcomes)
