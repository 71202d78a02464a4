"""What stays on a device: there after a crash, the same for a round that is trained again."""

from __future__ import annotations

import errno
import logging
import os
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_client.local_state import LocalState, LocalStates
from edge_client.optimizers import OptimizerState
from fedtide.errors import StateError
from fedtide.messages import Task
from fedtide.plan import Plan
from simulator.faults.fake_learning import fake_bundle
from tests.property.test_session_machine import task_of

BUNDLE = fake_bundle(8, local=3)
MANIFEST = BUNDLE.manifest
KEPT = Plan(optimizer="adamw", optimizer_state="kept")
NOTHING = OptimizerState(0, ())
FRESH = LocalState(None, None)


def task(round_id: int, plan: Plan = Plan(), run_id: str = "run") -> Task:  # noqa: B008
    return msgspec.structs.replace(task_of(round_id), plan=plan, run_id=run_id)


def values(number: float) -> Any:
    return np.full(3, number, np.float32)


def kept_state(number: float, size: int = 11) -> OptimizerState:
    return OptimizerState(7, (np.full(size, number, np.float32), np.zeros(size, np.float32)))


@pytest.fixture
def states(tmp_path: Path) -> LocalStates:
    return LocalStates(tmp_path)


def loaded(states: LocalStates, of: Task) -> list[float] | None:
    found = states.load(of, MANIFEST).values
    return None if found is None else found.tolist()


def test_a_round_begins_with_what_the_last_one_ended_with(states: LocalStates) -> None:
    assert states.load(task(1), MANIFEST) == FRESH
    for round_id in range(1, 6):
        states.save(task(round_id), values(round_id), NOTHING)
        assert loaded(states, task(round_id + 1)) == [round_id] * 3
        assert loaded(states, task(round_id + 3)) == [round_id] * 3


def test_a_round_that_is_trained_again_begins_with_the_same(states: LocalStates) -> None:
    """However often, and whatever its earlier attempts saved."""
    for attempt in range(3):
        assert loaded(states, task(1)) is None
        states.save(task(1), values(attempt), NOTHING)
    for round_id in range(2, 5):
        before = loaded(states, task(round_id))
        assert before is not None
        for attempt in range(4):
            assert loaded(states, task(round_id)) == before
            states.save(task(round_id), values(10 * round_id + attempt), NOTHING)
        assert loaded(states, task(round_id + 1)) == [10 * round_id + 3] * 3


def test_another_run_goes_on_with_the_newest(states: LocalStates) -> None:
    states.save(task(8), values(8), NOTHING)
    states.save(task(9), values(9), NOTHING)
    other = task(1, run_id="another")
    assert loaded(states, other) == [9.0] * 3
    states.save(other, values(1), NOTHING)
    assert loaded(states, other) == [9.0] * 3
    assert loaded(states, task(2, run_id="another")) == [1.0] * 3


def test_an_optimizers_state_is_kept_if_the_plan_says_so(states: LocalStates) -> None:
    states.save(task(1, KEPT), values(1), kept_state(0.5))
    found = states.load(task(2, KEPT), MANIFEST).optimizer
    assert found is not None
    assert (found.steps, len(found.vectors)) == (7, 2)
    np.testing.assert_array_equal(found.vectors[0], np.full(11, 0.5, np.float32))
    fresh = Plan(optimizer="adamw")
    other = Plan(momentum=0.5, optimizer_state="kept")
    for plan in (fresh, other):
        assert states.load(task(2, plan), MANIFEST).optimizer is None
        assert loaded(states, task(2, plan)) == [1.0] * 3
    states.save(task(2, fresh), values(2), kept_state(0.5))
    assert states.load(task(3, KEPT), MANIFEST).optimizer is None


def test_another_run_begins_with_a_fresh_optimizer(states: LocalStates) -> None:
    """It remembers models that the new run never had; what a device learned is its own."""
    states.save(task(1, KEPT), values(1), kept_state(0.5))
    found = states.load(task(1, KEPT, run_id="another"), MANIFEST)
    assert found.optimizer is None
    assert found.values is not None


def test_nothing_is_written_where_there_is_nothing_to_keep(tmp_path: Path) -> None:
    LocalStates(tmp_path).save(task(1), np.zeros(0, np.float32), kept_state(1))
    assert list(tmp_path.iterdir()) == []


def test_two_files_of_one_bundle_at_the_most(states: LocalStates, tmp_path: Path) -> None:
    for round_id in range(1, 6):
        states.save(task(round_id, KEPT), values(1), kept_state(1))
    other = msgspec.structs.replace(task(9), bundle=msgspec.structs.replace(
        task(9).bundle, digest="ee" * 32
    ))  # fmt: skip
    assert loaded(states, other) is None
    assert len(list((tmp_path / "local" / task(1).bundle.digest).iterdir())) == 2
    states.save(other, values(2), NOTHING)
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["ee" * 32]


def test_damage_is_noticed(
    states: LocalStates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    states.save(task(1), values(1), NOTHING)
    states.save(task(2), values(2), NOTHING)
    folder = tmp_path / "local" / task(1).bundle.digest
    newest = folder / "1"
    good = newest.read_bytes()
    for raw in (good[:-1], b"", good[:40], good[:50] + b"?" + good[51:]):
        newest.write_bytes(raw)
        assert loaded(states, task(3)) == [1.0] * 3
        assert "damaged" in caplog.text
        caplog.clear()
    states.save(task(3), values(3), NOTHING)  # over the damaged one
    assert loaded(states, task(4)) == [3.0] * 3
    for path in folder.iterdir():
        path.write_bytes(b"rot")
    assert states.load(task(5), MANIFEST) == FRESH


def test_saving_takes_no_copy_of_a_large_state(states: LocalStates) -> None:
    """Nor does an encoder see it: msgspec's ends the process where memory does."""
    size = 1_000_000
    own, large = np.ones(size, np.float32), kept_state(1, size)
    for round_id in (1, 2):
        tracemalloc.start()
        states.save(task(round_id, KEPT), own, large)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        held = 0 if round_id == 1 else 3 * own.nbytes  # what the round began with
        assert peak_bytes < held + 1_000_000, round_id


def test_the_state_of_another_layout_is_not_used(states: LocalStates) -> None:
    states.save(task(1, KEPT), np.zeros(4, np.float32), kept_state(1))
    assert states.load(task(2, KEPT), MANIFEST) == FRESH
    states.save(task(2, KEPT), values(1), kept_state(1, size=12))
    assert states.load(task(3, KEPT), MANIFEST).optimizer is None


def test_values_that_diverged_are_not_kept(states: LocalStates) -> None:
    states.save(task(1, KEPT), values(1), kept_state(1))
    with pytest.raises(OverflowError):
        states.save(task(2, KEPT), values(np.nan), kept_state(1))
    with pytest.raises(OverflowError):
        states.save(task(2, KEPT), values(2), kept_state(np.inf))
    assert loaded(states, task(3)) == [1.0] * 3


def test_a_full_disk_leaves_what_the_round_began_with(
    states: LocalStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    states.save(task(1), values(1), NOTHING)
    states.save(task(2), values(2), NOTHING)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match="No space left"):
        states.save(task(3), values(3), NOTHING)
    assert loaded(states, task(3)) == [2.0] * 3
