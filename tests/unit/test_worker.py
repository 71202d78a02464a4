"""The training thread: what it reports, and what of it may leave the device."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client.config import ClientConfig
from edge_client.data.config import DataConfig
from edge_client.optimizers import OptimizerState
from edge_client.session_events import (
    Event,
    TaskDone,
    TaskFailed,
)
from edge_client.trainers.opening import available_runtimes
from edge_client.training import TrainResult
from edge_client.worker import DATA_REASON, DivergedError, Worker, public_reason
from fedtide.blobs import BlobStore
from fedtide.errors import BundleError, ConfigError, DataError, GraphFailedError, StateError
from simulator.faults.fake_learning import fake_bundle
from tests.property.test_session_machine import task_of, update_of

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)

SECRET = 271_828


class Bench:
    """A worker and what it reports."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "patients.npz"
        np.savez(self.data, x=np.zeros((3, 2), np.float32), y=np.array([0, 1, SECRET]))
        data = DataConfig(self.data, rounds_per_day_max=1)
        config = ClientConfig("f", folder, data, "d")
        self.reports: queue.SimpleQueue[Event | StateError] = queue.SimpleQueue()
        self.worker = Worker(config, BlobStore(folder), self.reports.put)

    def start(self, round_id: int = 1) -> None:
        self.worker.start(task_of(round_id), fake_bundle(), b"")

    def report(self) -> Event | StateError:
        return self.reports.get(timeout=10)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.worker.stop()


def test_what_is_wrong_with_the_data_stays_on_the_device(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.start()
    assert bench.report() == TaskFailed("run", 1, DATA_REASON, logged=True)
    assert str(SECRET) in caplog.text
    assert str(bench.data) in caplog.text


def test_data_are_looked_at_before_there_is_a_task(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.worker.check(fake_bundle())
    np.savez(bench.data, x=np.zeros((3, 2), np.float32), y=np.array([0, 1, 1]))
    bench.worker.check(fake_bundle())
    bench.worker.stop()
    assert bench.reports.empty()
    assert "the local data fit the model: 3 examples" in caplog.text
    assert bench.worker.examples_count == 3


def test_wrong_data_are_named_before_there_is_a_task(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.worker.check(fake_bundle())
    bench.worker.stop()
    assert bench.reports.empty()
    assert f"tasks will be declined: label {SECRET}" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError(f"label {SECRET}"), False),
        (GraphFailedError(f"onnxruntime failed: index {SECRET}"), False),
        (ValueError(f"cannot use {SECRET}"), False),
        (ConfigError(f"/home/{SECRET}"), False),
        (BundleError(f"graph: node {SECRET} is not accepted"), True),
        (DivergedError(f"training diverged: {SECRET}"), True),
    ],
)
def test_only_reasons_without_data_and_paths_leave_the_device(error: Exception, said: bool) -> None:
    assert (str(SECRET) in public_reason(error)) == said
    if isinstance(error, ValueError):
        assert "ValueError" in public_reason(error)


def test_a_path_inside_a_bundles_error_stays_here() -> None:
    error = BundleError(f"'train' cannot be read: /home/{SECRET}")
    error.__cause__ = FileNotFoundError(f"/home/{SECRET}")
    assert str(SECRET) not in public_reason(error)


def test_data_are_used_no_more_often_than_they_may(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The first task fails, for the bundle has no graph: by then it has seen the data."""
    np.savez(bench.data, x=np.zeros((3, 2), np.float32), y=np.array([0, 1, 1]))
    bench.start(1)
    first = bench.report()
    assert isinstance(first, TaskFailed)
    assert "as often as" not in first.reason
    bench.start(2)
    refused = bench.report()
    assert isinstance(refused, TaskFailed)
    assert refused.reason.endswith("as often as this device lets them; again in 1 day")


@pytest.mark.parametrize("ends", ["done", "fails"])
def test_a_dropped_task_reports_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Its report would be taken for one about the task that replaced it."""
    begun = threading.Event()

    def work(job: object) -> object:
        task, dropped = job.task, job.dropped  # type: ignore[attr-defined]
        if task.round_id == 1:
            begun.set()
            assert dropped.wait(10)
            if ends == "fails":
                raise DataError("of a task that nobody wants any more")
        return update_of(task)

    do: Callable[[object], object] = work
    monkeypatch.setattr(bench.worker, "_do", do)
    bench.start(1)
    assert begun.wait(10)
    bench.start(2)
    assert bench.report() == TaskDone(update_of(task_of(2)))
    assert bench.reports.empty()


def test_a_model_that_diverged_is_declined_and_not_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss may still be finite when its values are not."""
    delta, own = np.array([np.nan], np.float32), np.zeros(0, np.float32)
    learned = TrainResult(delta, own, OptimizerState(0, ()), 3, (0.5,), 1)
    monkeypatch.setattr(bench.worker, "_do", lambda job: bench.worker._encoded(learned, job.task))
    bench.start()
    failed = bench.report()
    assert isinstance(failed, TaskFailed)
    assert failed.reason.startswith("training diverged: the vector has values")
