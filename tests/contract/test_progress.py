"""A training that is interrupted, anywhere, comes to the same bits as one that is not: through the
production worker, with every runtime that is here, dropout, momentum and state of the device's own.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge_client import local_round
from edge_client.config import ClientConfig, TrainingConfig
from edge_client.data.config import DataConfig
from edge_client.progress import FILE_NAME, SavedProgress
from edge_client.session_events import EpochsSaved, Event, TaskDone, TaskFailed, TaskHeld
from edge_client.trainers.opening import available_runtimes
from edge_client.worker import Worker
from fedtide import failpoints
from fedtide.blobs import BlobStore
from fedtide.errors import StateError
from fedtide.messages import BlobRef, Task, Update
from fedtide.plan import Plan
from fedtide.vectors import encode_vector
from tests.contract.test_trainers import bundle_and_expected
from tests.property.test_session_machine import task_of

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)

EPOCHS = 4
PLAN = Plan(
    epochs=EPOCHS,
    batch_size=10,
    learning_rate=0.05,
    momentum=0.9,
    optimizer_state="kept",
    seed=4,
)


class PowerCut(Exception):  # noqa: N818 - not an error of ours
    """Ends the worker's task as kill -9 would: nothing after it is done."""


class Bench:
    """One device's folder, and as many lives of its worker as the test wants."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self.folder, self.runtime = folder, runtime
        self.bundle, expected = bundle_and_expected("tiny_dropout")
        self.model = encode_vector(expected["start"][: self.bundle.manifest.shared_count], "f32")
        self.data = folder / "data.npz"
        folder.mkdir()
        self.write_data()

    def write_data(self, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        x = generator.standard_normal((45, *self.bundle.manifest.inputs.shape)).astype(np.float32)
        np.savez(self.data, x=x, y=(x.reshape(45, -1)[:, 0] > 0).astype(np.int64))

    def task(self, round_id: int = 1) -> Task:
        ref = BlobRef(self.bundle.digest, 1)
        return msgspec.structs.replace(task_of(round_id), plan=PLAN, bundle=ref)

    def life(
        self, task: Task, cut: Callable[[str], bool] = lambda _step: False, lost_ms_max: int = 0
    ) -> list[Event | StateError]:
        """All that a worker reports until it is done, or dies at a step that `cut` names."""
        reports: queue.SimpleQueue[Event | StateError] = queue.SimpleQueue()
        training = TrainingConfig(runtime=cast(Any, self.runtime), lost_ms_max=lost_ms_max)
        data = DataConfig(self.data, held_out_fraction=0.2)
        config = ClientConfig("f", self.folder, data, "d", training=training)
        worker = Worker(config, BlobStore(self.folder), reports.put)

        def listener(step: str) -> None:
            if cut(step):
                raise PowerCut(step)

        failpoints.listen(listener)
        worker.start(task, self.bundle, self.model)
        heard = [reports.get(timeout=60)]
        while isinstance(heard[-1], EpochsSaved | TaskHeld):
            heard.append(reports.get(timeout=60))
        worker.stop()
        failpoints.listen(None)
        return heard

    def done(self, task: Task) -> Update:
        last = self.life(task)[-1]
        assert isinstance(last, TaskDone), last
        return msgspec.structs.replace(last.update, training_ms=0)

    def kept(self) -> set[bytes]:
        """The optimizer's state."""
        return {path.read_bytes() for path in (self.folder / "local").rglob("[01]")}


@pytest.fixture(params=available_runtimes())
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path / "device", request.param)
    failpoints.listen(None)


@pytest.fixture
def whole(bench: Bench, tmp_path: Path) -> tuple[Update, set[bytes]]:
    """What comes of a training that nothing interrupts."""
    other = Bench(tmp_path / "other", bench.runtime)
    update = other.done(other.task())
    return update, other.kept()


def nth(name: str, times: int) -> Callable[[str], bool]:
    left = [times]

    def cut(step: str) -> bool:
        left[0] -= step == name
        return left[0] == 0 and step == name

    return cut


CUTS = [
    *[("client: progress saved", times) for times in range(1, EPOCHS)],
    ("client: training ended", 1),
    ("client: update written", 1),
    ("disk: sync", 2),
    ("disk: rename", 2),
]


@pytest.mark.parametrize(("step", "times"), CUTS)
def test_what_goes_on_comes_to_the_same_bits(
    bench: Bench,
    whole: tuple[Update, set[bytes]],
    step: str,
    times: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert isinstance(bench.life(bench.task(), nth(step, times))[-1], TaskFailed)
    assert bench.done(bench.task()) == whole[0]
    assert bench.kept() == whole[1]
    epochs = times if step == "client: progress saved" else EPOCHS - 1
    if not step.startswith("disk"):
        assert f"goes on after epoch {epochs}" in caplog.text


def test_every_life_may_be_cut_short(bench: Bench, whole: tuple[Update, set[bytes]]) -> None:
    """Each gets one epoch further: what is lost is what followed the last that was saved."""
    for life in range(1, EPOCHS):
        saved = bench.life(bench.task(), nth("client: progress saved", 1))
        assert isinstance(saved[-1], TaskFailed)
        progress = bench.folder / FILE_NAME
        assert progress.exists(), life
    assert bench.done(bench.task()) == whole[0]


def test_a_budget_of_time_counts_every_life(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """4 steps an epoch, 10 ms a step by this clock: with 95 ms, training ends after the tenth."""
    now_s = [100.0]

    def step(steps: int, _loss: float) -> bool:
        now_s[0] += 0.010 if steps else 0.0
        return True

    monkeypatch.setattr(local_round, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(Worker, "_pace", lambda _self, _dropped: step)
    plan = msgspec.structs.replace(PLAN, training_ms_max=95)
    task = msgspec.structs.replace(bench.task(), plan=plan)
    assert isinstance(bench.life(task, nth("client: progress saved", 1))[-1], TaskFailed)
    now_s[0] += 3_600  # the device was off
    last = bench.life(task)[-1]
    assert isinstance(last, TaskDone)
    assert (last.update.steps, last.update.training_ms, len(last.update.losses)) == (10, 100, 3)

    other = Bench(tmp_path / "other", bench.runtime)
    plan = msgspec.structs.replace(PLAN, steps_max=10)
    expected = other.done(msgspec.structs.replace(task, plan=plan))
    assert (last.update.blob, last.update.losses) == (expected.blob, expected.losses)
    assert bench.kept() == other.kept()  # the optimizer's state, too


def test_what_is_safe_is_told(bench: Bench) -> None:
    reports = bench.life(bench.task())
    saved = [event.epochs for event in reports if isinstance(event, EpochsSaved)]
    assert saved == list(range(1, EPOCHS)), "the last epoch ends in the update"


def test_short_epochs_are_not_saved_each(bench: Bench) -> None:
    reports = bench.life(bench.task(), lost_ms_max=60_000)
    assert [type(event) for event in reports] == [TaskDone]
    assert not (bench.folder / FILE_NAME).exists()


def test_the_model_is_judged_once(
    bench: Bench, whole: tuple[Update, set[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.life(bench.task(), nth("client: progress saved", 2))
    monkeypatch.delattr(local_round, "evaluate")
    assert bench.done(bench.task()).held_out == whole[0].held_out is not None


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "grown", "swapped"])
def test_damaged_progress_is_none(
    bench: Bench,
    whole: tuple[Update, set[bytes]],
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench.life(bench.task(), nth("client: progress saved", 2))
    path = bench.folder / FILE_NAME
    raw = path.read_bytes()
    middle = len(raw) // 2
    path.write_bytes(
        {
            "truncated": raw[:-1],
            "empty": b"",
            "flipped": raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :],
            "grown": raw + b"\0",
            "swapped": raw[middle:] + raw[:middle],
        }[damage]
    )
    assert bench.done(bench.task()) == whole[0]
    assert "damaged; it starts anew" in caplog.text
    assert "goes on after" not in caplog.text


@pytest.mark.parametrize("other", ["round", "data", "plan", "model"])
def test_progress_of_another_training_is_none(
    bench: Bench, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.life(bench.task(), nth("client: progress saved", 2))
    task = bench.task(2 if other == "round" else 1)
    if other == "data":
        bench.write_data(seed=2)
    elif other == "plan":
        plan = msgspec.structs.replace(PLAN, learning_rate=0.06)
        task = msgspec.structs.replace(task, plan=plan)
    elif other == "model":
        task = msgspec.structs.replace(task, model=BlobRef("cc" * 32, 1))
    bench.done(task)
    assert "of another training" in caplog.text
    assert "goes on after" not in caplog.text


def test_data_written_again_but_the_same_go_on(
    bench: Bench, whole: tuple[Update, set[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    """A device may make its file anew at each start."""
    caplog.set_level(logging.INFO)
    bench.life(bench.task(), nth("client: progress saved", 2))
    bench.data.unlink()
    bench.write_data()
    assert bench.done(bench.task()) == whole[0]
    assert "goes on after epoch 2" in caplog.text


def test_a_full_disk_costs_the_progress_and_not_the_training(
    bench: Bench, whole: tuple[Update, set[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StateError("no space left", no_room=True)

    monkeypatch.setattr(SavedProgress, "save", full)
    assert bench.done(bench.task()) == whole[0]


def test_an_update_waits_for_room_on_the_disk(
    bench: Bench, whole: tuple[Update, set[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.worker.ROOM_S", 0.01)
    put, left = BlobStore.put, [3]

    def full_at_first(store: BlobStore, content: bytes) -> BlobRef:
        left[0] -= 1
        if left[0] >= 0:
            raise StateError(os.strerror(errno.ENOSPC), no_room=True)
        return put(store, content)

    monkeypatch.setattr(BlobStore, "put", full_at_first)
    reports = bench.life(bench.task(), lost_ms_max=60_000)
    assert [type(event) for event in reports] == [TaskHeld, TaskHeld, TaskHeld, TaskDone]
    assert isinstance(reports[0], TaskHeld)
    assert "disk is full" in reports[0].reason
    assert isinstance(reports[-1], TaskDone)
    assert reports[-1].update.blob == whole[0].blob


def test_a_pause_stops_at_the_next_step_and_changes_nothing(
    bench: Bench, whole: tuple[Update, set[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of its steps and batches: it stands still, and comes to the same bits."""
    workers: list[Worker] = []
    steps: queue.SimpleQueue[int] = queue.SimpleQueue()
    pace = Worker._pace

    def watched(worker: Worker, dropped: threading.Event) -> Callable[[int, float], bool]:
        on_step = pace(worker, dropped)

        def paused_first(count: int, loss: float) -> bool:
            worker.pause(True)
            steps.put(count)
            return on_step(count, loss)

        workers.append(worker)
        return paused_first

    def let_go() -> None:
        """Each step is one that was allowed."""
        while steps.get() >= 0:
            workers[-1].pause(False)

    monkeypatch.setattr(Worker, "_pace", watched)
    watcher = threading.Thread(target=let_go, daemon=True)
    watcher.start()
    assert (bench.done(bench.task()), bench.kept()) == whole
    steps.put(-1)
    watcher.join(timeout=60)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 15, 16])
def test_a_power_cut_during_a_pause_costs_nothing(
    bench: Bench, whole: tuple[Update, set[bytes]], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At its first step, within an epoch of four, at its end, and at the very last of 16."""
    made: list[int] = []
    pace = Worker._pace

    def watched(worker: Worker, dropped: threading.Event) -> Callable[[int, float], bool]:
        on_step = pace(worker, dropped)

        def pausing(count: int, loss: float) -> bool:
            goes_on = on_step(count, loss)
            made.append(count)
            worker.pause(count == step - 1)  # so it never does in its second life
            return goes_on

        return pausing

    monkeypatch.setattr(Worker, "_pace", watched)
    day_ms = 86_400_000
    died = bench.life(bench.task(), nth("client: progress saved", 1), day_ms)
    assert isinstance(died[-1], TaskFailed)
    assert made == list(range(step)), "it stood still before the next"
    made.clear()
    assert (bench.done(bench.task()), bench.kept()) == whole
    assert made == list(range(step + 1, 17)), "no step is made twice"


def test_a_paused_training_can_be_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: queue.SimpleQueue[Event | StateError] = queue.SimpleQueue()
    config = ClientConfig("f", bench.folder, DataConfig(bench.data), "d")
    worker = Worker(config, BlobStore(bench.folder), reports.put)
    stands = threading.Event()
    wait_for = worker._gate.wait_for

    def standing(predicate: Callable[[], bool]) -> bool:
        stands.set()  # whoever drops it needs the gate's lock, which only waiting gives away
        return wait_for(predicate)

    monkeypatch.setattr(worker._gate, "wait_for", standing)
    # In the training's thread: from another it could come when all is done.
    failpoints.listen(
        lambda step: worker.pause(True) if step == "client: training started" else None
    )
    worker.start(bench.task(), bench.bundle, bench.model)
    assert stands.wait(60)
    assert worker._paused
    worker.stop()
    worker._thread.join(60)
    assert not worker._thread.is_alive()
    assert isinstance(reports.get_nowait(), EpochsSaved), "what pauses is saved"
    assert reports.empty(), "nobody hears of its end"
