"""Whole federations in memory whose slow devices do less, and count for what they did."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.recompute import recompute
from coordinator.store import Store
from fedtide import cli
from fedtide.messages import Offer, Receipt, Task
from fedtide.vectors import decode_vector, encode_vector
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Federation, Peer

PLAN: dict[str, object] = {"epochs": 10, "batch_size": 10, "training_ms_max": 1_000}


def federation_of(
    folder: Path, plan: dict[str, object] | None = None, **rounds: object
) -> Federation:
    """a makes 10 steps of its 10; b 40 of 40; c, which is slow, 8 of 40."""
    settings: dict[str, object] = {"devices_min": 3, "weights": "fednova", **rounds}
    federation = Federation(folder, plan=plan or PLAN, **settings)  # type: ignore[arg-type]
    federation.add("a", examples=10)
    federation.add("b", "c", examples=40)
    federation.devices["c"].runner.step_ms = 130
    return federation


def assert_counted_as_in_the_paper(store: Store) -> None:
    """Every model by the paper's formula, in its own order, and bit for bit. No norm stands out."""
    for model in store.models()[1:]:
        assert recompute(store, model) == model.ref.digest
        before = store.model(model.version - 1)
        assert before is not None
        old, new = (
            decode_vector(store.blobs.read(m.ref.digest), "f32", ELEMENTS).astype(np.float64)
            for m in (before, model)
        )
        weights, amounts, deltas = [], [], []
        for part in store.parts(model.round_id):
            assert part.update.blob is not None
            content = store.blobs.read(part.update.blob.digest)
            deltas.append(decode_vector(content, "f32", ELEMENTS).astype(np.float64))
            weights.append(part.update.examples / math.sqrt(1 + part.staleness))
            momentum = part.plan.momentum
            history = [(1 - momentum**k) / (1 - momentum) for k in range(1, part.update.steps + 1)]
            amounts.append(math.fsum(history))
        shares = np.array(weights) / math.fsum(weights)
        tau = float(shares @ np.array(amounts))
        directions = np.array([d / a for d, a in zip(deltas, amounts, strict=True)])
        np.testing.assert_allclose(new - old, tau * (shares @ directions), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_slow_devices_do_less_and_count_for_what_they_did(tmp_path: Path, momentum: float) -> None:
    federation = federation_of(tmp_path, PLAN | {"momentum": momentum})
    federation.run(federation.finished)
    for round_id in (1, 2):
        steps = [part.update.steps for part in federation.store.parts(round_id)]
        assert steps == [10, 40, 8]
    assert_counted_as_in_the_paper(federation.store)


def test_late_updates_keep_their_discount_and_the_plan_they_were_made_by(tmp_path: Path) -> None:
    federation = federation_of(
        tmp_path,
        PLAN | {"momentum": 0.9},
        mode="buffered",
        cohort_size=None,
        count=3,
        buffer_size=2,
        concurrency=3,
        learning_rate_decay=0.5,
    )
    runners = {name: device.runner for name, device in federation.devices.items()}
    for runner in runners.values():
        runner.held = True
    federation.settle()
    for names in ("ab", "ab", "ca"):
        for name in names:
            runners[name].finish()
            federation.settle()
        if names == "ab":
            federation.kill_coordinator()
            federation.boot_coordinator()
            federation.settle()
    federation.run(federation.finished)
    assert [
        (p.update.steps, p.staleness, p.plan.learning_rate) for p in federation.store.parts(3)
    ] == [
        (10, 0, 0.1 * 0.5**2),
        (8, 2, 0.1),
    ]
    assert_counted_as_in_the_paper(federation.store)


def test_a_model_is_verified_by_the_weights_of_its_own_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No configuration is read for it; and other weights would be noticed."""
    federation = federation_of(tmp_path, count=1)
    federation.run(federation.finished)
    federation.kill_coordinator()
    folder = str(tmp_path / "coordinator")
    assert cli.main(["models", "verify", "--state-dir", folder]) == 0
    store = Store(tmp_path / "coordinator")
    with store.transaction():
        store._db.execute("UPDATE rounds SET weights = 'examples'")
    store.close()
    assert cli.main(["models", "verify", "--state-dir", folder]) != 0
    capsys.readouterr()


@pytest.mark.parametrize("weights", ["fednova", "examples"])
@pytest.mark.parametrize(("steps", "said"), [(0, "0"), (21, "21"), (2**53 - 1, "9,007")])
def test_steps_that_the_plan_does_not_make_are_rejected(
    tmp_path: Path, weights: str, steps: int, said: str
) -> None:
    plan: dict[str, object] = {"epochs": 2}
    federation = Federation(tmp_path, plan=plan, cohort_size=1, weights=weights)
    federation.settle()
    peer = Peer(federation, "p")
    peer.hello()
    assert peer.last(Task).plan.epochs == 2
    content = encode_vector(np.ones(ELEMENTS, np.float32), "f32")
    peer.say(Offer(peer.update(content, examples=100, steps=steps)), *peer.chunks(content))
    receipt = peer.last(Receipt)
    if weights == "examples":
        assert receipt.verdict == "accepted"  # they mean nothing then
        return
    assert receipt.verdict == "rejected"
    assert f"it says {said}" in receipt.reason
    assert "the plan makes 1 to 20 of 100 examples" in receipt.reason
    assert federation.store.counts()["rejected: steps"] == 1


def test_an_update_of_before_whose_steps_nobody_looked_at_does_no_harm(tmp_path: Path) -> None:
    """Accepted while only examples counted, and late: in the first round that counts steps."""
    federation = Federation(tmp_path, devices_min=2, cohort_size=2, quorum=2, late="discount")
    federation.settle()
    peers = [Peer(federation, name) for name in "ab"]
    for peer in peers:
        peer.hello()
    ones = encode_vector(np.ones(ELEMENTS, np.float32), "f32")
    peers[0].say(Offer(peers[0].update(ones, steps=0)), *peers[0].chunks(ones))
    federation.run(lambda: federation.store.load_state().phase == "backing_off")
    federation.kill_coordinator()
    rounds = msgspec.structs.replace(federation.config.rounds, weights="fednova")
    federation.config = msgspec.structs.replace(federation.config, rounds=rounds)
    federation.boot_coordinator()
    federation.add("c", "d")
    federation.run(federation.finished)
    store = federation.store
    assert 0 in [part.update.steps for part in store.parts(2)]
    model = store.model(1)
    assert model is not None
    assert recompute(store, model) == model.ref.digest
