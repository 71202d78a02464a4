"""Whole federations in memory: updates that come late, and rounds that never wait for them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.aggregation import Contribution, apply_delta, weighted_mean
from coordinator.recompute import job_of, recompute
from coordinator.store import Store
from fedtide import cli
from fedtide.messages import Decline, Offer, Receipt, Task
from fedtide.vectors import decode_vector, encode_vector
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Federation, Peer


def assert_all_is_accounted_for(federation: Federation) -> None:
    """From the store alone: each model's bits, and the end of each update that was accepted."""
    store = federation.store
    counted: list[tuple[str, int]] = []
    for model in store.models():
        assert recompute(store, model) == model.ref.digest
        if model.version:
            counted += [
                (p.update.update_id, p.update.round_id) for p in store.parts(model.round_id)
            ]
            assert by_hand(store, model.version) == decoded(store, model.version).tobytes()
    assert len(counted) == len(set(counted))
    rows = store._db.execute(
        "SELECT u.update_id, u.round_id, u.joined, r.outcome, r.reason FROM updates u"
        " LEFT JOIN rounds r ON r.round_id = u.joined"
        " WHERE u.verdict = 'accepted' AND u.digest IS NOT NULL"
    ).fetchall()
    carried = {member.update_id for member in store.load_state().carried}
    for update_id, round_id, joined, outcome, reason in rows:
        if joined is None:
            assert update_id in carried
        elif outcome == "done":
            assert (update_id, round_id) in counted
        else:
            assert (outcome, bool(reason)) == ("abandoned", True)


def decoded(store: Store, version: int) -> np.ndarray:
    model = store.model(version)
    assert model is not None
    return decode_vector(store.blobs.read(model.ref.digest), "f32", ELEMENTS)


def by_hand(store: Store, version: int) -> bytes:
    """The model again, by another way than the code's own, without clipping."""
    model = store.model(version)
    assert model is not None
    parts = []
    for update, staleness, *_ in job_of(store, model).parts:
        assert update.blob is not None
        delta = decode_vector(store.blobs.read(update.blob.digest), "f32", ELEMENTS)
        parts.append(Contribution(update.examples, delta, staleness))
    return apply_delta(decoded(store, version - 1), weighted_mean(parts, ELEMENTS)).tobytes()


def straggle(federation: Federation, name: str) -> None:
    """A device finishes round 1 offline, and comes back when round 2 is open."""
    late = federation.devices[name]
    late.runner.held = True
    federation.run(lambda: late.runner.pending is not None)
    late.link.stop()
    late.runner.finish()
    for device in federation.devices.values():
        device.runner.held = device is not late
    federation.run(lambda: federation.store.load_state().round_id == 2)
    late.link.start()
    federation.run(lambda: federation.store.answered(1, name))


def test_a_late_update_counts_once_with_its_discount(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=3, quorum=2, count=2, late="discount")
    federation.add("a", "b", "c")
    straggle(federation, "b")
    state = federation.store.load_state()
    assert [(m.device_id, m.round_id, m.version) for m in state.carried] == [("b", 1, 0)]
    receipt = federation.store.receipt(state.carried[0].update_id, "b")
    assert receipt is not None
    assert receipt.verdict == "accepted"
    assert receipt.reason == "late and 1 models behind: it counts with 71% of its examples"
    for device in federation.devices.values():
        device.runner.held = False
        device.runner.finish()
    federation.run(federation.finished)
    ages = [(p.update.round_id, p.staleness) for p in federation.store.parts(2)]
    assert sorted(ages) == [(1, 1), (2, 0), (2, 0), (2, 0)]
    assert_all_is_accounted_for(federation)


def test_the_discount_is_one_over_the_root() -> None:
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.float32)
    mean = weighted_mean([Contribution(10, ones, 3), Contribution(10, zeros)], 1)
    assert mean[0] == np.float32(5 / 15)
    mean = weighted_mean([Contribution(1, ones, 1), Contribution(1, zeros)], 1)
    assert math.isclose(mean[0], 1 / (1 + math.sqrt(2)), rel_tol=1e-7)


def test_updates_of_an_abandoned_round_count_in_the_next(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=3, quorum=3, count=1, late="discount")
    federation.add("a", "b", "c")
    federation.devices["c"].runner.held = True
    federation.run(lambda: federation.store.load_state().phase == "backing_off")
    assert len(federation.store.load_state().carried) == 2
    federation.kill_coordinator()
    federation.boot_coordinator()
    federation.devices["c"].runner.held = False
    federation.run(federation.finished)
    # a and b train again from the same model on the same data: their work counts already.
    assert len(federation.store.parts(2)) == 3
    assert federation.store.counts()["discarded: repeated"] == 2
    assert_all_is_accounted_for(federation)


def test_updates_of_an_abandoned_round_are_recorded_with_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=3, quorum=3, count=1)
    federation.add("a", "b", "c")
    federation.devices["c"].runner.held = True
    federation.run(lambda: federation.store.load_state().phase == "backing_off")
    assert len(federation.store.parts(1)) == 2
    assert_all_is_accounted_for(federation)


@pytest.mark.parametrize("late", ["discard", "discount"])
def test_the_answer_that_ends_a_round_is_accounted_for_too(tmp_path: Path, late: str) -> None:
    """It is accepted and abandoned, or carried, in one step; its content counts once at most."""
    federation = Federation(tmp_path, devices_min=3, quorum=3, count=1, late=late)
    federation.add("b", "c")
    federation.settle()
    liar = Peer(federation, "a")
    liar.hello()
    federation.settle()
    liar.say(Decline(liar.last(Task).run_id, 1, "no"))
    federation.run(lambda: federation.store.load_state().phase == "backing_off")
    assert len(federation.store.updates(1)) == 2
    assert_all_is_accounted_for(federation)
    assert len(federation.store.load_state().carried) == (2 if late == "discount" else 0)


def test_what_is_discarded_stays_so_when_its_reason_has_gone(tmp_path: Path) -> None:
    federation = Federation(tmp_path, cohort_size=1, late="discard")
    federation.settle()
    peer = Peer(federation, "p")
    peer.hello()
    federation.run(lambda: federation.store.load_state().phase == "backing_off")
    late = Offer(peer.update(np.ones(ELEMENTS, "<f4").tobytes()))
    peer.say(late)
    first = peer.last(Receipt)
    assert first.verdict == "discarded"
    # Started again with another policy, the coordinator would take it.
    federation.kill_coordinator()
    rounds = msgspec.structs.replace(federation.config.rounds, late="discount")
    federation.config = msgspec.structs.replace(federation.config, rounds=rounds)
    federation.boot_coordinator()
    federation.settle()
    peer.heard.clear()
    peer.say(late)
    assert peer.heard == [first]


def test_an_update_that_is_too_old_is_discarded(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path, devices_min=3, quorum=2, count=2, late="discount", staleness_max=0
    )
    federation.add("a", "b", "c")
    straggle(federation, "b")
    (reason,) = federation.store._db.execute(
        "SELECT reason FROM updates WHERE device_id = 'b' AND verdict = 'discarded'"
    ).fetchone()
    assert reason == "too stale: it is 1 models behind, at most 0 count"
    assert federation.store.counts()["discarded: late"] == 1


# ---- buffered ----


def buffered(folder: Path, *, count: int = 4, buffer_size: int = 2) -> Federation:
    return Federation(
        folder,
        mode="buffered",
        cohort_size=None,
        count=count,
        buffer_size=buffer_size,
        concurrency=3,
    )


def test_buffered_rounds_do_not_wait_for_a_straggler(tmp_path: Path) -> None:
    federation = buffered(tmp_path, count=3)
    federation.add("a", "b", "c")
    runners = {name: device.runner for name, device in federation.devices.items()}
    for runner in runners.values():
        runner.held = True
    federation.settle()
    for names in ("ab", "ab", "ca"):
        for name in names:
            runners[name].finish()
            federation.settle()
    assert federation.store.load_state().kind == "evaluate"
    ages = [
        [(p.update.round_id, p.staleness) for p in federation.store.parts(model.round_id)]
        for model in federation.store.models()[1:]
    ]
    assert ages == [[(1, 0), (1, 0)], [(2, 0), (2, 0)], [(3, 0), (1, 2)]]
    receipt = federation.store.receipt(federation.store.parts(3)[1].update.update_id, "c")
    assert receipt is not None
    assert receipt.reason == "2 models behind: it counts with 58% of its examples"
    assert_all_is_accounted_for(federation)


def test_a_buffered_federation_with_churn(tmp_path: Path) -> None:
    """Devices die while they work, links go, the coordinator is killed: each version comes."""
    federation = buffered(tmp_path, count=6)
    federation.add("a", "b", "c", "d", "e")
    for version, (name, other) in enumerate(itertools.pairwise("abcdea"), start=1):
        device = federation.devices[name]
        device.runner.held = True
        federation.devices[other].link.stop()
        federation.run(lambda v=version: federation.store.load_state().model_version >= v)  # type: ignore[misc]
        device.kill()
        federation.settle()
        if version % 2:
            federation.kill_coordinator()
            federation.settle()
            federation.boot_coordinator()
        device.boot()
        federation.devices[other].link.start()
        federation.settle()
    federation.run(federation.finished)
    finished = federation.service.finished
    assert finished is not None
    assert finished.succeeded
    assert len(federation.store.models()) == 7
    assert_all_is_accounted_for(federation)


def test_a_crash_while_the_next_version_is_made(tmp_path: Path) -> None:
    federation = buffered(tmp_path)
    federation.crash_before_aggregation = True
    federation.add("a", "b", "c")
    federation.run(lambda: not federation.coordinator_alive)
    federation.crash_before_aggregation = False
    federation.boot_coordinator()
    federation.run(federation.finished)
    assert federation.jobs[0] == federation.jobs[1]
    assert_all_is_accounted_for(federation)


def test_a_buffer_larger_than_the_fleet_is_closed_after_a_while(tmp_path: Path) -> None:
    federation = buffered(tmp_path, buffer_size=5, count=2)
    federation.add("a", "b")
    federation.run(federation.finished)
    assert [len(federation.store.parts(m.round_id)) for m in federation.store.models()[1:]] == [
        2,
        2,
    ]


# ---- the history ----


def test_verify_recomputes_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation = Federation(tmp_path, devices_min=2, cohort_size=2, count=3)
    history = msgspec.structs.replace(federation.config.history, rounds_kept=2)
    federation.service._config = msgspec.structs.replace(federation.config, history=history)
    federation.add("a", "b")
    federation.run(federation.finished)
    verify = ["models", "verify", "--state-dir", str(tmp_path / "coordinator")]
    assert cli.main(verify) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model 0: the same bits from its digest",
        "model 1: its updates are not kept any more",
        "model 2: the same bits from 2 updates",
        "model 3: the same bits from 2 updates",
    ]
    (part, _) = federation.store.parts(3)
    assert part.update.blob is not None
    federation.store._db.execute(
        "UPDATE updates SET staleness = 1 WHERE round_id = 3 AND device_id = 'a'"
    )
    assert cli.main([*verify, "--version", "3"]) == 7
    out = capsys.readouterr()
    assert out.out == "model 3: OTHER bits from 2 updates\n"
    assert "restore the state folder" in out.err


def test_a_device_whose_update_is_too_stale_is_free_again(tmp_path: Path) -> None:
    """It has its receipt and will not answer again: its place is not kept until the deadline."""
    federation = Federation(
        tmp_path,
        mode="buffered",
        cohort_size=None,
        buffer_size=1,
        concurrency=2,
        devices_min=2,
        count=9,
        staleness_max=1,
        collect_ms=600_000,
    )
    federation.settle()
    fast, slow = Peer(federation, "fast"), Peer(federation, "slow")
    fast.hello()
    slow.hello()
    stale = slow.update(encode_vector(np.ones(ELEMENTS, np.float32), "f32"))
    for number in range(2, 5):
        content = encode_vector(np.full(ELEMENTS, 1 / number, np.float32), "f32")
        fast.say(Offer(fast.update(content)), *fast.chunks(content))
    slow.say(Offer(stale))
    assert slow.last(Receipt).reason.startswith("too stale: it is 3 models behind")
    assert slow.last(Task).round_id == 4
