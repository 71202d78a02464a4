"""Whole federations: real broker, real processes, real training; the device has no torch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.aggregate_job import AggregateJob, contributions
from coordinator.aggregation import apply_delta, weighted_mean
from coordinator.store import Store
from demo.brokers import Broker
from demo.local import LocalFederation, wait_for
from edge_client.trainers.opening import available_runtimes
from fedtide.bundle import sha256_hex
from fedtide.vectors import decode_vector, encode_vector
from tests import bundles
from tests.committed import rows
from tests.end_to_end.conftest import DEVICES

DEVICE_PYTHON = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
WAIT_S = 60.0


@pytest.fixture(scope="session")
def bundle() -> Path:
    return bundles.build("tiny_mlp")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Three separable classes in 8 dimensions; the last part of each file is held out."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(3, 8)) * 2
    for name in (*DEVICES, "test"):
        y = rng.integers(0, 3, 60)
        x = (centers[y] + rng.normal(size=(60, 8))).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return lambda name: folder / f"{name}.npz"


@contextmanager
def federation(
    folder: Path, broker: Broker, bundle: Path, data: Callable[[str], Path], **rounds: object
) -> Iterator[LocalFederation]:
    """Four devices; half of them on onnxruntime-training, where it exists."""
    with LocalFederation(folder / "run", broker) as local:
        local.add_coordinator(
            bundle,
            rounds={"count": 4, "cohort_size": 4, "devices_min": 4, "quorum": 2, **rounds},
            plan={"epochs": 2, "learning_rate": 0.1},
            evaluation={"data": str(data("test"))},
        )
        both = "ort_training" in available_runtimes()
        for number, device in enumerate(DEVICES):
            other = both and number % 2
            local.add_device(
                device,
                data(device),
                sys.executable if other else DEVICE_PYTHON,
                training={"runtime": "ort_training" if other else "portable", "cpu_share": 0.05},
                data={"held_out_fraction": 0.2},
            )
        yield local


def query(local: LocalFederation, sql: str) -> list[tuple[Any, ...]]:
    return rows(local.state_dir, sql)


def count(local: LocalFederation, sql: str) -> int:
    found = query(local, sql)
    return int(found[0][0]) if found else 0


def accepted(local: LocalFederation, round_id: int) -> int:
    return count(
        local,
        f"SELECT COUNT(*) FROM updates WHERE round_id = {round_id} AND verdict = 'accepted'",
    )


def assert_clean(local: LocalFederation) -> None:
    """Nobody said a traceback, and no update counted twice."""
    for child in (local.coordinator, *local.devices.values()):
        log = child.log_path.read_text()
        assert "Traceback" not in log, log
    per_device = query(
        local,
        "SELECT COUNT(*) FROM updates WHERE verdict = 'accepted' GROUP BY round_id, device_id",
    )
    assert all(row == (1,) for row in per_device)


def fedtide(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedtide", *arguments], capture_output=True, text=True, check=False
    )


def test_a_federation_learns_and_its_models_can_be_deployed(
    tmp_path: Path, broker: Broker, bundle: Path, data: Callable[[str], Path]
) -> None:
    with federation(tmp_path, broker, bundle, data) as local:
        local.start()
        assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
        assert_clean(local)
    store = Store(local.state_dir, read_only=True)
    models = store.models()
    store.close()
    assert [model.version for model in models] == [0, 1, 2, 3, 4]
    accuracies = [model.judged.accuracy or 0.0 for model in models]
    assert accuracies[-1] > max(0.8, accuracies[0])
    assert all(model.held_out is not None for model in models)

    assert_recomputable(local)
    listing = fedtide("models", "list", "--state-dir", str(local.state_dir))
    assert listing.returncode == 0
    assert len(listing.stdout.splitlines()) == 6
    out = tmp_path / "model.onnx"
    done = fedtide("models", "export", "--state-dir", str(local.state_dir), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert deployed_accuracy(out, data("test")) == pytest.approx(accuracies[-1])


@pytest.mark.slow
def test_slow_devices_do_less_and_the_model_is_verified(
    tmp_path: Path, broker: Broker, bundle: Path, data: Callable[[str], Path]
) -> None:
    """One device has all of its processor, the others a twentieth; 10,000 steps end with time."""
    with LocalFederation(tmp_path / "run", broker) as local:
        local.add_coordinator(
            bundle,
            rounds={"count": 3, "cohort_size": 4, "devices_min": 4, "weights": "fednova"},
            plan={"epochs": 2_000, "learning_rate": 0.02, "training_ms_max": 200},
            evaluation={"data": str(data("test"))},
        )
        for device in DEVICES:
            share = 1.0 if device == DEVICES[0] else 0.05
            local.add_device(device, data(device), DEVICE_PYTHON, training={"cpu_share": share})
        local.start()
        assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
        assert_clean(local)
    store = Store(local.state_dir, read_only=True)
    models = store.models()
    steps = [[update.steps for update in store.updates(m.round_id)] for m in models[1:]]
    store.close()
    for fast, *slow in steps:
        assert 1 <= max(slow) < fast
    assert (models[-1].judged.accuracy or 0.0) > 0.8
    verified = fedtide("models", "verify", "--state-dir", str(local.state_dir))
    assert verified.returncode == 0, verified.stderr


def assert_recomputable(local: LocalFederation) -> None:
    """Every model follows, bit for bit, from the one before it and the stored updates."""
    store = Store(local.state_dir, read_only=True)
    models = store.models()
    for base, model in itertools.pairwise(models):
        parts, factor = tuple(store.parts(model.round_id)), store.terms(model.round_id).norm_factor
        job = AggregateJob(model.round_id, base.ref, parts, base.ref.size_bytes // 4, factor)
        delta = weighted_mean(contributions(job, store.blobs), job.shared_count)
        old = decode_vector(store.blobs.read(base.ref.digest), "f32", job.shared_count)
        content = encode_vector(apply_delta(old, delta), "f32")
        assert sha256_hex(content) == model.ref.digest
    store.close()


def deployed_accuracy(model: Path, test_data: Path) -> float:
    from fedtide.runtime import import_onnxruntime

    session = import_onnxruntime().InferenceSession(str(model))
    with np.load(test_data) as arrays:
        (scores,) = session.run(None, {session.get_inputs()[0].name: arrays["x"]})
        return float((scores.argmax(axis=1) == arrays["y"]).mean())


def test_after_kill_9_the_coordinator_goes_on_with_the_same_round(
    tmp_path: Path, broker: Broker, bundle: Path, data: Callable[[str], Path]
) -> None:
    with federation(tmp_path, broker, bundle, data) as local:
        held = local.devices[DEVICES[0]]
        held_signal(local)
        wait_for(lambda: accepted(local, 1) == 3, "three updates of round 1", WAIT_S)
        local.coordinator.kill()
        before = query(local, "SELECT update_id FROM updates ORDER BY update_id")
        local.coordinator.start()
        held.start()
        assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
        assert_clean(local)
        assert accepted(local, 1) == 4
        after = query(local, "SELECT update_id FROM updates ORDER BY update_id")
        assert set(before) <= set(after)
        assert count(local, "SELECT COUNT(*) FROM rounds WHERE outcome = 'abandoned'") == 0


def held_signal(local: LocalFederation) -> None:
    """Start everybody; the first device dies as soon as it has its task."""
    local.start()
    held = local.devices[DEVICES[0]]
    wait_for(lambda: "round 1: train" in held.log_path.read_text(), "the first task", WAIT_S)
    held.kill()


def test_a_device_killed_in_training_comes_back_with_its_update(
    tmp_path: Path, broker: Broker, bundle: Path, data: Callable[[str], Path]
) -> None:
    with federation(tmp_path, broker, bundle, data) as local:
        held_signal(local)
        wait_for(lambda: accepted(local, 1) == 3, "three updates of round 1", WAIT_S)
        local.devices[DEVICES[0]].start()
        assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
        assert_clean(local)
        assert accepted(local, 1) == 4


def test_a_broker_that_forgets_everything_is_survived(
    tmp_path: Path, broker: Broker, bundle: Path, data: Callable[[str], Path]
) -> None:
    with federation(tmp_path, broker, bundle, data, count=6) as local:
        local.start()
        wait_for(
            lambda: (
                count(local, "SELECT MAX(version) FROM models") >= 2
                if query(local, "SELECT 1 FROM models WHERE version = 2")
                else False
            ),
            "model 2",
            WAIT_S,
        )
        broker.kill()
        for path in (broker.folder / "store").glob("*"):
            path.unlink()
        broker.start()
        assert local.coordinator.wait(WAIT_S) == 0, local.coordinator.log_tail()
        assert_clean(local)
        assert count(local, "SELECT MAX(version) FROM models") == 6
