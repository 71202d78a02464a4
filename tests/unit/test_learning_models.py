"""Versions of a model in a simulation: their journal, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator.aggregate_job import AggregateJob, next_model
from coordinator.aggregate_job import Part as AggregatePart
from edge_client.trainers.opening import available_runtimes
from fedtide.blobs import BlobStore
from fedtide.errors import DamagedError, StateError
from fedtide.messages import Encoding
from fedtide.plan import Plan
from fedtide.safetensors import read_initial_model
from fedtide.vectors import encode_vector
from simulator.learning.learner import Learned, Learner, Train
from simulator.learning.models import JOURNAL, DivergedError, Models, Part
from simulator.learning.workers import InProcess, Task
from tests.golden.test_golden import UPDATE
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


def test_a_version_on_disk_is_not_taken_for_one_of_other_parts(tmp_path: Path) -> None:
    learner = tiny_learner()
    first, _ = opened(tmp_path, learner)
    go(first, 2)
    first.save()
    second, _ = opened(tmp_path, learner)
    with pytest.raises(StateError, match=r"model 1 in .* is made of other updates"):
        second.advance(1, [Part(1, PLAN, 0), Part(0, PLAN, 0)])
    # A journal that does not say who counted is believed.
    journal = (tmp_path / JOURNAL).read_text().splitlines()
    untold = [msgspec.json.encode({**msgspec.json.decode(line), "parts": None}) for line in journal]
    (tmp_path / JOURNAL).write_bytes(b"\n".join(untold) + b"\n")
    third, _ = opened(tmp_path, learner)
    third.advance(1, [Part(1, PLAN, 0)])


class Interrupted(InProcess):
    """Ctrl-C comes while version 3 is `asked` to be measured, or while version 2 is waited for."""

    def __init__(self, learner: Learner, moment: str) -> None:
        super().__init__(learner)
        self._moment = moment
        self._measured = 0

    def begin_evaluation(self, model: Any, batches: int) -> Any:
        number = self._measured
        self._measured += 1
        if (number, self._moment) == (3, "asked"):
            raise KeyboardInterrupt
        evaluation = super().begin_evaluation(model, batches)
        return Impatient(evaluation) if (number, self._moment) == (2, "waited for") else evaluation


class Impatient:
    """Ctrl-C comes while somebody waits for this, once."""

    def __init__(self, evaluation: Any) -> None:
        self._evaluation = evaluation
        self._waited = False

    def result(self) -> Any:
        if not self._waited:
            self._waited = True
            raise KeyboardInterrupt
        return self._evaluation.result()


@pytest.mark.parametrize("moment", ["asked", "waited for"])
def test_an_interruption_between_two_versions_loses_no_checkpoint(
    tmp_path: Path, moment: str
) -> None:
    learner = tiny_learner()
    whole, _ = opened(None, learner)
    go(whole, 5)
    first = Models(learner.bundle, Interrupted(learner, moment), learner.test_batches, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        go(first, 5)
    first.save()
    second, workers = opened(tmp_path, learner)
    go(second, 5)
    assert second.history[-1].digest == whole.history[-1].digest
    assert [v.metrics for v in second.history] == [v.metrics for v in whole.history]
    assert workers.trained == 2 * 3


def test_a_power_cut_between_model_and_journal_costs_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = tiny_learner()
    models, _ = opened(tmp_path, learner)
    go(models, 2)
    models.save()
    journal = (tmp_path / JOURNAL).read_bytes()
    models.advance(3, [Part(0, PLAN, 2)])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: None)  # the cut came before
        models.save()
    (tmp_path / JOURNAL).write_bytes(journal)
    # Of another origin than what is made now: it must not be taken for it.
    (tmp_path / "model-0000003.f32").write_bytes(bytes(4 * learner.shared_count))
    for last in (3, 4):
        again, _ = opened(tmp_path, learner)
        go(again, last)
        again.save()


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


def test_another_versions_model_is_checked_too(tmp_path: Path) -> None:
    models, _ = opened(tmp_path, tiny_learner(), versions_kept=3)
    go(models, 4)
    models.save()
    (tmp_path / "model-0000003.f32").write_bytes((tmp_path / "model-0000004.f32").read_bytes())
    with pytest.raises(DamagedError, match="model 3 is not the journal's"):
        opened(tmp_path, tiny_learner(), versions_kept=3)


def test_another_initial_model_is_another_run(tmp_path: Path) -> None:
    """Nothing is damaged: whoever exported the bundle anew is to know that."""
    models, _ = opened(tmp_path, tiny_learner())
    go(models, 2)
    models.save()
    initial = read_initial_model(tiny_learner().bundle)
    for other in (initial + np.float32(1), initial[:-1]):
        with pytest.raises(StateError, match="began from another initial model") as caught:
            opened(tmp_path, tiny_learner(), initial=other)
        assert not isinstance(caught.value, DamagedError)
        assert "exported anew" in (caught.value.hint or "")
    opened(tmp_path, tiny_learner())


def test_a_plan_decides_how_examples_look() -> None:
    """Augmentation is a function of its seed, which is another one in each round."""
    learner, seeds = tiny_learner(), list[int]()
    look = learner._data.examples

    def examples(indices: Any, seed: int = 0) -> Any:
        seeds.append(seed)
        return look(indices, seed)

    learner._data.examples = examples  # type: ignore[method-assign]
    models, _ = opened(None, learner)
    for version, seed in ((1, 5), (2, 6)):
        plan = msgspec.structs.replace(PLAN, seed=seed)
        models.advance(version, [Part(0, plan, version - 1), Part(1, plan, version - 1)])
    assert seeds == [5, 5, 6, 6]


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


@pytest.mark.parametrize("encoding", ["f32", "f16"])
def test_reduction_is_a_coordinators(tmp_path: Path, encoding: Encoding) -> None:
    """The bits of the coordinator's own job on the same updates, without a bound."""
    learner, blobs = tiny_learner(), BlobStore(tmp_path)
    workers = InProcess(learner)
    plans = (PLAN, Plan(epochs=3, batch_size=10, learning_rate=0.1, steps_max=3))
    initial = read_initial_model(learner.bundle)[: learner.shared_count]
    stored = []
    for device, plan in enumerate(plans):
        (done,) = workers.train([Task(Train(device, plan), initial)])
        assert isinstance(done.reply, Learned)
        ref = blobs.put(encode_vector(done.vector, encoding))
        examples = done.reply.examples
        changes = {"examples": examples, "steps": plan.steps_for(examples), "blob": ref}
        update = msgspec.structs.replace(UPDATE, encoding=encoding, **changes)
        stored.append(AggregatePart(update, staleness=device, norm=None, plan=plan))
    assert stored[0].update.steps != stored[1].update.steps
    base = blobs.put(encode_vector(initial, "f32"))
    job = AggregateJob(1, base, tuple(stored), len(initial), 0.0, "fednova")

    counts = [part.update.examples for part in stored]
    made = {}
    for weights in ("fednova", "examples"):
        models, _ = opened(None, learner, weights=weights, examples=counts, encoding=encoding)
        models.advance(1, [Part(k, plan, 0, staleness=k) for k, plan in enumerate(plans)])
        made[weights] = encode_vector(models.vector(1), "f32")
    assert made["fednova"] == next_model(job, blobs)
    assert made["examples"] == next_model(job._replace(weights="examples"), blobs)
    assert made["fednova"] != made["examples"]


class Planted(InProcess):
    """Whatever a device learns, one of its values is this."""

    def __init__(self, learner: Learner, value: float) -> None:
        super().__init__(learner)
        self._value = value

    def train(self, tasks: Any) -> Any:
        for done in super().train(tasks):
            done.vector[3] = self._value
            yield done


@pytest.mark.parametrize(
    ("encoding", "value", "hint"),
    [("f16", 65_504.0, ""), ("f16", 70_000.0, "f32"), ("f32", 70_000.0, ""), ("f32", 2e30, "rate")],
)
def test_what_a_device_could_not_send_is_told(encoding: Encoding, value: float, hint: str) -> None:
    learner = tiny_learner()
    workers = Planted(learner, value)
    models = Models(learner.bundle, workers, learner.test_batches, encoding=encoding)
    parts = [Part(2, PLAN, 0)]
    if not hint:
        models.advance(1, parts)
        return
    with pytest.raises(DivergedError, match=f"device 2 .* range of {encoding}") as caught:
        models.advance(1, parts)
    assert hint in (caught.value.hint or "")
