"""What a few devices could once do to stop, stall or bloat the coordinator."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedtide.messages import BlobRef, Hello, Offer, Receipt, Want, encode
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Federation, Peer
from tests.hostile.test_service import complete, peer


def constant(value: float) -> bytes:
    return np.full(ELEMENTS, value, dtype="<f4").tobytes()


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, devices_min=3, count=1)


def test_two_devices_with_the_same_bad_bytes_are_both_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=4, count=1, cohort_size=4, quorum=2)
    federation.settle()
    first, second = Peer(federation, "m1"), Peer(federation, "m2")
    first.hello()
    second.hello()
    peer_like(federation)
    content = constant(np.nan)
    first.say(Offer(first.update(content)))
    second.say(Offer(second.update(content)))
    for chunk in first.chunks(content):
        first.say(chunk)
        second.say(chunk)
    assert first.last(Receipt).verdict == "rejected"
    second.say(Offer(second.update(content)), *second.chunks(content))
    assert second.last(Receipt).verdict == "rejected"
    complete(federation)


def peer_like(federation: Federation) -> None:
    """Two honest devices that hold still, and so open the round."""
    federation.add("a", "b")
    for device in federation.devices.values():
        device.runner.held = True
    federation.settle()


def test_an_evaluation_with_two_gigabytes_is_refused_before_a_byte(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=1, cohort_size=1, count=1)
    federation.add("a")
    federation.devices["a"].runner.held = True
    federation.settle()
    liar = Peer(federation, "mallory")
    liar.hello()
    federation.devices["a"].runner.finish()
    federation.settle()
    update = liar.update(b"x")
    assert update.kind == "evaluate"
    liar.say(Offer(msgspec.structs.replace(update, blob=BlobRef("ab" * 32, 2**31))))
    assert liar.last(Receipt).reason == "an evaluation has no blob"
    assert not [body for body in liar.heard if isinstance(body, Want)]
    assert not list((federation.folder / "coordinator" / "partial").iterdir())


def test_deltas_that_add_up_beyond_every_bound_abandon_their_round(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path, devices_min=1, cohort_size=1, count=5, abandoned_max=2, back_off_ms=100
    )
    federation.settle()
    liar = Peer(federation, "mallory")
    liar.hello()
    for number in range(40):
        if federation.finished():
            break
        content = constant(9.9e29 - number * 1e24)  # the same one again would be a replay
        liar.say(Offer(liar.update(content)), *liar.chunks(content))
        federation.now_ms += 200
        federation.service.time_reached(federation.now_ms)
        federation.settle()
    finished = federation.service.finished
    assert finished is not None
    assert "the aggregate is unusable" in finished.reason
    federation.kill_coordinator()
    federation.boot_coordinator()  # and it can be started again
    assert np.isfinite(federation.model(federation.store.load_state().model_version)).all()


def test_a_configuration_changed_in_mid_round_rejects_nobody(federation: Federation) -> None:
    liar = peer(federation)
    content = constant(0.5)
    update = liar.update(content)
    federation.kill_coordinator()
    federation.settle()
    federation.config = msgspec.structs.replace(federation.config, encoding="f16")
    federation.boot_coordinator()
    federation.settle()
    liar.hello()
    liar.say(Offer(update), *liar.chunks(content))
    assert liar.last(Receipt).verdict == "accepted"
    complete(federation)


def test_offers_of_rounds_that_never_were_leave_no_rows(federation: Federation) -> None:
    liar = peer(federation)
    update = liar.update(constant(0.5))
    for number in range(50):
        liar.say(
            Offer(msgspec.structs.replace(update, update_id=f"u{number}", run_id="another")),
            Offer(msgspec.structs.replace(update, update_id=f"v{number}", round_id=9)),
        )
    assert [r.verdict for r in liar.heard if isinstance(r, Receipt)] == ["discarded"] * 100
    rows = federation.store._db.execute("SELECT COUNT(*) FROM updates").fetchone()
    assert rows == (0,)
    complete(federation)


def test_models_withdrawn_without_a_link_do_not_stay_at_the_broker(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=2, cohort_size=2, count=3)
    federation.add("a", "b")
    for device in federation.devices.values():
        device.runner.held = True
    federation.settle()
    for _ in range(2):
        federation.crash_before_aggregation = True
        for device in federation.devices.values():
            device.runner.finish()
        federation.settle()
        assert not federation.coordinator_alive
        federation.crash_before_aggregation = False
        federation.boots += 1
        federation.boot_coordinator()
        federation.run(lambda: all(d.runner.pending for d in federation.devices.values()))
    for device in federation.devices.values():
        device.runner.held = False
        device.runner.finish()
    federation.run(federation.finished)
    newest = federation.store.models()[-1].ref.digest
    old = {m.ref.digest for m in federation.store.models()} - {newest}
    retained = {t.split("/")[-2] for t in federation.broker.retained if "/blob/" in t}
    assert newest in retained
    assert not old & retained


def test_a_hello_that_lies_at_the_broker_makes_no_device(federation: Federation) -> None:
    hello = encode(Hello("0", ("portable",), 10, ("f32",)), "ghost.1")
    federation.broker.route(federation.topics.up("ghost"), hello, retain=True)
    federation.kill_coordinator()
    federation.settle()
    federation.boot_coordinator()
    federation.settle()
    assert federation.store.load_state().online == ()
