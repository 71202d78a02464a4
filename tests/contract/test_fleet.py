"""Devices with every runtime that is here, and the coordinator's arithmetic, without a network:
what travels is averaged, what is local stays, and a round that is done again gives the same bits.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from coordinator.aggregation import Contribution, apply_delta, weighted_mean
from coordinator.config import EvaluationConfig
from coordinator.evaluation import TestSet
from edge_client.config import ClientConfig, TrainingConfig
from edge_client.data.config import DataConfig
from edge_client.session_events import (
    Event,
    TaskDone,
)
from edge_client.trainers.opening import available_runtimes
from edge_client.worker import Worker
from fedtide.blobs import BlobStore
from fedtide.bundle import Bundle
from fedtide.errors import StateError
from fedtide.messages import BlobRef, Update
from fedtide.plan import Plan
from fedtide.vectors import Vector, decode_vector, encode_vector
from tests.contract.test_trainers import bundle_and_expected
from tests.property.test_session_machine import task_of

pytestmark = pytest.mark.skipif(
    not available_runtimes(), reason="no onnxruntime in this environment"
)

PLAN = Plan(
    epochs=3, batch_size=12, learning_rate=0.05, momentum=0.9, optimizer_state="kept", seed=4
)


class Device:
    """The production worker, on a folder of its own."""

    def __init__(self, folder: Path, bundle: Bundle, runtime: str, examples: int) -> None:
        self.folder, self.bundle, self.runtime = folder, bundle, runtime
        folder.mkdir(exist_ok=True)
        generator = np.random.default_rng(sum(folder.name.encode()))
        x = generator.standard_normal((examples + 12, *bundle.manifest.inputs.shape))
        y = (x[:, 0] > 0).astype(np.int64)
        np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
        self.reports: queue.SimpleQueue[Event | StateError] = queue.SimpleQueue()
        self.boot()

    def boot(self) -> None:
        """Start; again after `stop`: all that is in memory is gone."""
        data = DataConfig(self.folder / "data.npz", held_out_fraction=0.25)
        training = TrainingConfig(runtime=cast(Any, self.runtime))
        self.blobs = BlobStore(self.folder)
        name = self.folder.name
        config = ClientConfig("f", self.folder, data, name, training=training)
        self.worker = Worker(config, self.blobs, self.reports.put)

    def stop(self) -> None:
        self.worker.stop()

    def learn(self, round_id: int, model: Vector, plan: Plan = PLAN) -> tuple[Update, Vector]:
        """One round: the update and its delta."""
        task = msgspec.structs.replace(
            task_of(round_id), plan=plan, bundle=BlobRef(self.bundle.digest, 1)
        )
        self.worker.start(task, self.bundle, encode_vector(model, "f32"))
        report = self.reports.get(timeout=60)
        assert isinstance(report, TaskDone), report
        assert report.update.blob is not None
        content = self.blobs.read(report.update.blob.digest)
        return report.update, decode_vector(content, "f32", self.bundle.manifest.shared_count)

    def kept(self) -> list[bytes]:
        """Content of the files with what stays here."""
        folder = self.folder / "local"
        return sorted(path.read_bytes() for path in folder.rglob("[01]"))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[list[Device]]:
    bundle, _ = bundle_and_expected("tiny_norm")
    runtimes = (*available_runtimes(), *available_runtimes(), "portable")[:3]
    devices = [
        Device(tmp_path / f"device-{index}", bundle, runtime, 24 + 12 * index)
        for index, runtime in enumerate(runtimes)
    ]
    yield devices
    for device in devices:
        device.stop()


def test_a_fleet_of_all_runtimes_averages_what_travels(fleet: list[Device], tmp_path: Path) -> None:
    bundle, expected = bundle_and_expected("tiny_norm")
    shared = bundle.manifest.shared_count
    assert shared < bundle.manifest.elements_count
    model = expected["start"][:shared]
    losses = []
    for round_id in range(1, 5):
        learned = [device.learn(round_id, model) for device in fleet]
        held_out = [update.held_out for update, _ in learned]
        losses.append(sum(part.loss or np.nan for part in held_out if part is not None))
        parts = [Contribution(update.examples, delta) for update, delta in learned]
        model = apply_delta(model, weighted_mean(parts, shared))
    assert losses[-1] < 0.7 * losses[0]
    kept = [raw for device in fleet for raw in device.kept()]
    assert len(set(kept)) == len(kept) == 2 * len(fleet), "each device has its own"
    data = fleet[0].folder / "data.npz"
    judged = TestSet(EvaluationConfig(data=data), bundle).evaluate(model)
    assert judged.loss is not None
    assert judged.accuracy is not None


def test_runtimes_learn_the_same_from_the_same(tmp_path: Path) -> None:
    bundle, expected = bundle_and_expected("tiny_norm")
    model = expected["start"][: bundle.manifest.shared_count]
    deltas = []
    for runtime in available_runtimes():
        (tmp_path / runtime).mkdir()
        device = Device(tmp_path / runtime / "same", bundle, runtime, 24)
        for round_id in (1, 2):
            deltas.append(device.learn(round_id, model)[1])
        device.stop()
    for first, second in zip(deltas[:2], deltas[2:], strict=False):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-4)
    assert np.abs(deltas[0] - deltas[1]).max() > 1e-2, "the second round begins with local state"


def test_a_round_after_a_crash_gives_the_same_bits(fleet: list[Device]) -> None:
    bundle, expected = bundle_and_expected("tiny_norm")
    model = expected["start"][: bundle.manifest.shared_count]
    for device in fleet:
        device.learn(1, model)
        update, delta = device.learn(2, model)
        device.stop()
        device.boot()  # it had trained, but nobody heard of it
        again, same = device.learn(2, model)
        np.testing.assert_array_equal(same, delta)
        assert (again.held_out, again.losses) == (update.held_out, update.losses)


def test_without_its_state_a_device_starts_from_the_bundle(fleet: list[Device]) -> None:
    bundle, expected = bundle_and_expected("tiny_norm")
    model = expected["start"][: bundle.manifest.shared_count]
    device = fleet[0]
    _, first = device.learn(1, model)
    _, second = device.learn(2, model)
    assert (first != second).any()
    for path in (device.folder / "local").rglob("[01]"):
        path.write_bytes(b"rot")
    _, third = device.learn(3, model, msgspec.structs.replace(PLAN))
    np.testing.assert_array_equal(third, first)
