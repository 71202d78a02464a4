"""Whole federations in memory: what is promised when devices and the coordinator fail."""

from __future__ import annotations

import gc
import hashlib
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregation import Contribution, apply_delta, weighted_mean
from coordinator.inquest import read_store
from coordinator.voice import UNJUDGED
from fedtide.measures import Measure, Metrics
from fedtide.messages import Offer, Receipt, encode
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Federation, Peer, learn


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, devices_min=3)


def update_id_of(federation: Federation, round_id: int, device_id: str) -> str:
    run_id = federation.store.fact("run_id")
    return hashlib.sha256(f"{run_id}/{round_id}/{device_id}".encode()).hexdigest()[:24]


def expected_model(federation: Federation, version: int) -> np.ndarray:
    """Recomputed by hand from what the devices would learn."""
    base = federation.model(version - 1)
    parts = [
        Contribution(federation.devices[name].examples, learn(name, base))
        for name in sorted(federation.devices)
    ]
    return apply_delta(base, weighted_mean(parts, ELEMENTS))


def test_rounds_give_the_weighted_mean(federation: Federation) -> None:
    federation.add("a", "b", examples=10)
    federation.add("c", examples=30)
    federation.run(federation.finished)
    assert [m.version for m in federation.store.models()] == [0, 1, 2]
    for version in (1, 2):
        np.testing.assert_array_equal(
            federation.model(version), expected_model(federation, version)
        )


def test_every_model_is_judged_by_the_devices(federation: Federation) -> None:
    federation.add("a", "b", "c")
    federation.run(federation.finished)
    judged = [model.held_out for model in federation.store.models()]
    twelve = Metrics(12, {"loss": Measure(6.0, 12.0), "accuracy": Measure(9.0, 12.0)})
    assert judged == [twelve, twelve, twelve]
    assert (twelve.loss, twelve.accuracy) == (0.5, 0.75)


@pytest.mark.parametrize("held_out", [None, Metrics(4, {"loss": Measure(2.0, 4.0)})])
def test_models_that_nobody_judges_are_told(
    federation: Federation,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    held_out: Metrics | None,
) -> None:
    monkeypatch.setattr("tests.federation.HELD_OUT", held_out)
    federation.add("a", "b", "c")
    federation.run(federation.finished)
    assert caplog.messages.count(UNJUDGED) == (held_out is None)
    assert read_store(federation.store.folder).judged == (held_out is not None)


def test_the_log_tells_the_final_evaluation_from_a_round(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    federation.add("a", "b", "c")
    federation.run(federation.finished)
    told = [text for text in caplog.messages if ": inviting " in text or ": asking " in text]
    assert told == [
        "round 1: inviting a, b, c",
        "round 2: inviting a, b, c",
        "final evaluation of model 2: asking a, b, c",
    ]


def test_a_device_that_dies_in_training_finishes_after_its_reboot(federation: Federation) -> None:
    federation.add("a", "b", "c")
    device = federation.devices["b"]
    device.runner.held = True
    federation.run(lambda: device.runner.pending is not None)
    device.kill()
    federation.settle()
    device.boot()
    federation.run(federation.finished)
    assert len(federation.store.updates(1)) == 3


def test_a_finished_update_survives_a_power_cut(federation: Federation) -> None:
    federation.add("a", "b", "c")
    device = federation.devices["c"]
    device.runner.held = True
    federation.run(lambda: device.runner.pending is not None)
    device.link.stop()  # no link any more, not even for a last word
    device.runner.finish()
    device.kill()
    federation.settle()
    device.boot()
    federation.run(federation.finished)
    assert len(federation.store.updates(1)) == 3


def test_the_coordinator_goes_on_with_the_same_round(federation: Federation) -> None:
    federation.add("a", "b", "c")
    device = federation.devices["a"]
    device.runner.held = True
    federation.run(lambda: len(federation.store.updates(1)) == 2)
    federation.kill_coordinator()
    federation.settle()
    federation.boot_coordinator()
    federation.settle()
    state = federation.store.load_state()
    assert (state.phase, state.round_id, len(state.accepted())) == ("collecting", 1, 2)
    device.runner.finish()
    federation.run(federation.finished)
    np.testing.assert_array_equal(federation.model(1), expected_model(federation, 1))


def test_a_crash_before_the_aggregate_is_committed_gives_the_same_model(
    federation: Federation,
) -> None:
    federation.crash_before_aggregation = True
    federation.add("a", "b", "c")
    federation.run(lambda: not federation.coordinator_alive)
    federation.crash_before_aggregation = False
    federation.boot_coordinator()
    federation.run(federation.finished)
    assert federation.jobs[0] == federation.jobs[1]
    np.testing.assert_array_equal(federation.model(1), expected_model(federation, 1))


def test_the_deadline_closes_a_round_with_a_quorum(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=3, quorum=2, count=1)
    federation.add("a", "b", "c")
    federation.devices["b"].runner.held = True
    federation.run(federation.finished)
    assert [u.examples for u in federation.store.updates(1)] == [10, 10]


def test_a_late_update_is_discarded_with_a_reason(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=3, quorum=2, count=2)
    federation.add("a", "b", "c")
    late = federation.devices["b"]
    late.runner.held = True
    federation.run(lambda: late.runner.pending is not None)
    late.link.stop()  # offline, but it goes on training
    late.runner.finish()
    federation.run(lambda: federation.store.load_state().round_id == 2)
    late.runner.held = False
    late.link.start()
    federation.run(federation.finished)
    assert [u.round_id for u in federation.store.updates(1)] == [1, 1]
    receipt = federation.store.receipt(update_id_of(federation, 1, "b"), "b")
    assert receipt is not None
    assert (receipt.verdict, receipt.reason) == ("discarded", "late: round 1 has closed")


def test_too_few_updates_abandon_the_round_and_back_off(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=3, quorum=3, count=1, abandoned_max=2)
    federation.add("a", "b", "c")
    federation.devices["b"].runner.held = True
    federation.run(federation.finished)
    assert federation.service.finished is not None
    assert not federation.service.finished.succeeded
    assert "2 of at least 3 updates" in federation.service.finished.reason


def test_lost_retained_chunks_are_published_again(federation: Federation) -> None:
    federation.add("a", "b")
    federation.settle()
    for topic in [topic for topic in federation.broker.retained if "/blob/" in topic]:
        del federation.broker.retained[topic]
    federation.add("c")
    federation.run(federation.finished)


def test_junk_on_every_topic_changes_nothing(federation: Federation) -> None:
    federation.add("a", "b", "c")
    federation.settle()
    topics = federation.topics
    for payload in (b"", b"junk", b"\x81\xa1v\x02", encode(Receipt("u", "accepted"), "x")):
        for topic in (topics.up("a"), topics.presence("a"), topics.down("a"), topics.status):
            federation.broker.route(topic, payload, retain=False)
        federation.broker.route(topics.up("../etc"), payload, retain=False)
    federation.run(federation.finished)
    assert federation.store.counts()["refused: malformed"] >= 2


def test_what_stays_on_the_devices_does_not_travel(tmp_path: Path) -> None:
    federation = Federation(tmp_path, local=100, devices_min=3, count=1)
    assert federation.bundle.manifest.elements_count == ELEMENTS + 100
    federation.add("a", "b", "c")
    federation.run(federation.finished)
    np.testing.assert_array_equal(federation.model(1), expected_model(federation, 1))
    sizes = {update.blob.size_bytes for update in federation.store.updates(1) if update.blob}
    assert sizes == {4 * ELEMENTS} == {federation.model(1).nbytes}
    rest = federation.bundle.manifest.files["rest"].sha256
    for device in federation.devices.values():
        assert device.session.blobs.has(rest)


def test_an_update_of_the_whole_vector_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, local=100, cohort_size=1)
    federation.settle()
    peer = Peer(federation, "p")
    peer.hello()
    peer.say(Offer(peer.update(bytes(4 * (ELEMENTS + 100)))))
    receipt = peer.last(Receipt)
    assert receipt.verdict == "rejected"
    assert receipt.reason == f"it has {4 * ELEMENTS + 400:,} bytes, expected {4 * ELEMENTS:,}"


def test_a_finished_federation_that_is_started_again_says_how_to_go_on(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    federation.add("a", "b", "c")
    federation.run(federation.finished)
    federation.kill_coordinator()
    caplog.set_level(logging.INFO)
    federation.boot_coordinator()
    hint = "this federation was finished before: raise rounds.count above 2 to go on from here"
    assert hint in caplog.messages


def test_a_federation_that_is_gone_may_be_freed_by_any_thread(tmp_path: Path) -> None:
    """A finaliser that fails is an error of whatever test runs then."""
    Federation(tmp_path)
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()


def test_a_pause_says_how_long_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    federation = Federation(tmp_path, devices_min=2, cohort_size=2, quorum=2, abandoned_max=2)
    federation.add("a", "b")
    federation.devices["b"].runner.held = True
    federation.run(lambda: federation.store.load_state().phase == "backing_off")
    reason = "the deadline has come with 1 of at least 2 updates"
    assert f"waiting: {reason}; the next round opens after 5 s" in caplog.messages
