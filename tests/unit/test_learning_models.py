"""Versions of a model in a simulation: their journal, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.trainers.opening import available_runtimes
from fedtide.errors import DamagedError
from fedtide.plan import Plan
from simulator.learning.learner import Learner
from simulator.learning.models import JOURNAL, DivergedError, Models, Part
from simulator.learning.workers import InProcess
from tests.learning import tiny_learner

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)
PLAN = Plan(epochs=1, batch_size=10, learning_rate=0.1)


class Counting(InProcess):
    """How many tasks were done."""

    trained = 0

    def train(self, tasks: Any) -> Any:
        for done in super().train(tasks):
            self.trained += 1
            yield done


def opened(folder: Path | None, learner: Learner, **settings: Any) -> tuple[Models, Counting]:
    workers = Counting(learner)
    return Models(learner.bundle, workers, learner.test_batches, folder, **settings), workers


def go(models: Models, last: int, staleness: int = 0) -> None:
    for version in range(1, last + 1):
        base = max(0, version - 1 - staleness)
        parts = [Part(0, PLAN, version - 1), Part(1, PLAN, base, version - 1 - base)]
        models.advance(version, parts)
    models.settle()


@pytest.mark.parametrize("staleness", [0, 2])
def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path: Path, staleness: int) -> None:
    learner = tiny_learner()
    whole, _ = opened(None, learner, versions_kept=3)
    go(whole, 8, staleness)
    first, _ = opened(tmp_path, learner, versions_kept=3)
    go(first, 5, staleness)
    first.save()
    for version in (6, 7):  # lost: after the last checkpoint
        first.advance(version, [Part(0, PLAN, version - 1)])
    heard: list[int] = []
    second, workers = opened(
        tmp_path, learner, versions_kept=3, on_version=lambda v: heard.append(v.version)
    )
    go(second, 8, staleness)
    assert [v.digest for v in second.history] == [v.digest for v in whole.history]
    assert [v.metrics for v in second.history] == [v.metrics for v in whole.history]
    assert heard == list(range(9))
    assert workers.trained == 2 * 3


def test_versions_that_are_not_due_are_not_measured(tmp_path: Path) -> None:
    models, _ = opened(tmp_path, tiny_learner(), due=lambda version: version % 3 == 0)
    go(models, 7)
    assert [v.version for v in models.history if v.metrics is not None] == [0, 3, 6]
    assert len(models.history) == 8


@pytest.mark.parametrize("damage", ["cut", "garbage", "model", "gone", "empty"])
def test_damaged_files_are_a_message(tmp_path: Path, damage: str) -> None:
    models, _ = opened(tmp_path, tiny_learner())
    go(models, 2)
    models.save()
    journal = tmp_path / JOURNAL
    (model,) = tmp_path.glob("model-*.f32")
    match damage:
        case "cut":
            journal.write_bytes(journal.read_bytes()[:-9])
        case "garbage":
            journal.write_bytes(b"\xff{}\n")
        case "model":
            model.write_bytes(bytes(model.stat().st_size))
        case "gone":
            model.unlink()
        case "empty":
            journal.write_bytes(b"")
    with pytest.raises(DamagedError, match="cannot be used"):
        opened(tmp_path, tiny_learner())


def test_divergence_is_told() -> None:
    models, _ = opened(None, tiny_learner())
    plan = Plan(epochs=5, batch_size=10, learning_rate=1000.0)
    with pytest.raises(DivergedError, match=r"device 0 .* learning rate 1000"):
        _advance_until_it_ends(models, plan)


def _advance_until_it_ends(models: Models, plan: Plan) -> None:
    for version in range(1, 20):
        models.advance(version, [Part(0, plan, version - 1)])


def test_staleness_weighs(tmp_path: Path) -> None:
    learner = tiny_learner()
    fresh, _ = opened(None, learner, versions_kept=3)
    stale, _ = opened(None, learner, versions_kept=3)
    for models in (fresh, stale):
        models.advance(1, [Part(0, PLAN, 0)])
    fresh.advance(2, [Part(0, PLAN, 1), Part(1, PLAN, 0, 0)])
    stale.advance(2, [Part(0, PLAN, 1), Part(1, PLAN, 0, 3)])
    assert not np.array_equal(fresh.vector(2), stale.vector(2))
