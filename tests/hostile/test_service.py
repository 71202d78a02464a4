"""Devices that lie, and noise: the coordinator gives a verdict, counts it, and goes on."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator import aggregate_job, intake, vetting
from coordinator.aggregation import Contribution, apply_delta, weighted_mean
from coordinator.config import CoordinatorConfig
from coordinator.revocations import Revocations
from coordinator.round_machine import RoundState
from coordinator.round_state import few
from coordinator.service import LATELY_MS
from coordinator.uploads import FETCHES_MAX
from coordinator.voice import PROBLEMS_MAX, PROBLEMS_MS
from fedtide.blobs import BlobStore
from fedtide.limits import BLOCK_BYTES, MESSAGE_BYTES_MAX
from fedtide.measures import Measure, Metrics
from fedtide.members import Members
from fedtide.messages import (
    BlobRef,
    Chunk,
    Decline,
    Offer,
    Presence,
    Problem,
    Receipt,
    Task,
    Update,
    Want,
    Welcome,
    encode,
)
from fedtide.objections import NO_MEMBER, UNNUMBERED
from fedtide.transport import Unsealed
from fedtide.vectors import decode_vector, encode_vector
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Federation, Peer

GOOD = encode_vector(np.full(ELEMENTS, 0.5, dtype=np.float32), "f32")
NAN = np.full(ELEMENTS, np.nan, dtype="<f4").tobytes()


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Three devices make a round; `mallory` of the tests is one of them."""
    return Federation(tmp_path, devices_min=3, count=1)


def peer(federation: Federation, name: str = "mallory") -> Peer:
    """A liar in the cohort of round 1, with two honest devices beside it that hold still."""
    federation.add("a", "b")
    for device in federation.devices.values():
        device.runner.held = True
    federation.settle()
    liar = Peer(federation, name)
    liar.hello()
    assert liar.last(Task).round_id == 1
    return liar


def complete(federation: Federation) -> None:
    """The honest devices answer and the federation ends; what was counted is what was stored."""
    for device in federation.devices.values():
        device.runner.held = False
        device.runner.finish()
    federation.run(federation.finished)
    finished = federation.service.finished
    assert finished is not None
    assert finished.succeeded, finished.reason
    assert_recomputable(federation, version=1)


def assert_recomputable(federation: Federation, version: int) -> None:
    """Invariant 2, from outside: the stored updates of the round give the stored model."""
    store = federation.store
    model = store.model(version)
    assert model is not None
    parts = []
    for update, staleness, *_ in store.parts(model.round_id):
        assert update.blob is not None
        content = store.blobs.read(update.blob.digest)
        delta = decode_vector(content, "f32", ELEMENTS)
        parts.append(Contribution(update.examples, delta, staleness))
    expected = apply_delta(federation.model(version - 1), weighted_mean(parts, ELEMENTS))
    np.testing.assert_array_equal(federation.model(version), expected)


def refusals(federation: Federation) -> dict[str, int]:
    return {
        name.removeprefix("refused: "): value
        for name, value in federation.store.counts().items()
        if name.startswith("refused: ")
    }


def test_random_bytes_on_every_topic(federation: Federation) -> None:
    liar = peer(federation)
    noise = random.Random(7)
    topics = federation.topics
    everywhere = [
        topics.up("mallory"),
        topics.up("a"),
        topics.presence("mallory"),
        topics.down("a"),
        topics.status,
        topics.chunk("0" * 64, 0),
        topics.root,
        topics.up("../../etc/passwd"),
        topics.up("x\n"),
    ]
    for _ in range(50):
        for topic in everywhere:
            payload = noise.randbytes(noise.randrange(200))
            federation.broker.route(topic, payload, retain=False)
        federation.settle()
    complete(federation)
    assert refusals(federation)["malformed"] >= 100
    assert liar.last(Problem).reason.startswith("malformed")
    assert federation.store.receipt("x", "x\n") is None


@pytest.mark.parametrize(
    "body",
    [
        {"type": "hello"},
        {"type": "hello", "version": 3, "runtimes": [], "examples": 1, "encodings": []},
        {"type": "offer", "update": {"update_id": "../../x"}},
        {"type": "chunk", "digest": "f" * 63, "size_bytes": 1, "first_block": 0},
        {"type": "want", "digest": "f" * 64, "missing": [[0, 0]]},
        {"type": "want", "digest": "f" * 64, "missing": [[-1, 1]]},
        {"type": "decline", "round_id": 2**53, "reason": ""},
        {"type": "shutdown"},
        {"type": 5},
        {},
        [],
        None,
    ],
)
def test_wrong_types_are_malformed(federation: Federation, body: object) -> None:
    liar = peer(federation)
    liar.say_bytes(msgspec.msgpack.encode({"v": 1, "id": "m.7", "body": body}))
    problem = liar.last(Problem)
    assert problem.regarding == "m.7"
    assert problem.reason.startswith("malformed: ")
    assert refusals(federation) == {"malformed": 1}


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_protocol_version_is_malformed(federation: Federation, version: object) -> None:
    liar = peer(federation)
    body = {"type": "decline", "round_id": 1, "reason": ""}
    liar.say_bytes(msgspec.msgpack.encode({"v": version, "id": "m.7", "body": body}))
    assert refusals(federation) == {"malformed": 1}


def test_an_oversize_message_is_not_decoded(federation: Federation) -> None:
    liar = peer(federation)
    liar.say_bytes(b"\x00" * (MESSAGE_BYTES_MAX + 1))
    assert "at most 131072 are read" in liar.last(Problem).reason


def test_what_only_a_coordinator_says_is_refused(federation: Federation) -> None:
    liar = peer(federation)
    liar.say(Receipt("u", "accepted"))
    assert liar.last(Problem).reason == "a device does not say 'receipt'"
    federation.broker.route(
        federation.topics.presence("mallory"), encode(Receipt("u", "accepted"), "x"), retain=False
    )
    complete(federation)


def test_the_number_of_counters_is_bounded(federation: Federation) -> None:
    """A device that makes up digests and sizes must not fill the database with new reasons."""
    liar = peer(federation)
    liar.say(Offer(liar.update(GOOD)))
    chunk = liar.chunks(GOOD)[0]
    for number in range(20):
        liar.say(Want(f"{number:064x}", ((0, 1),)))
        liar.say(msgspec.structs.replace(chunk, size_bytes=number + 1))
        liar.say(msgspec.structs.replace(chunk, first_block=1000 + number))
    assert sum(refusals(federation).values()) == 60
    assert len(refusals(federation)) <= 4


# ---- verdicts on updates ----


def verdict(liar: Peer) -> tuple[str, str]:
    receipt = liar.last(Receipt)
    return receipt.verdict, receipt.reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"round_id": 0}, ("discarded", "late: round 0 has closed")),
        ({"round_id": 2}, ("discarded", "round 2 has not been opened")),
        ({"run_id": "another"}, ("discarded", "it belongs to another run of this federation")),
        ({"kind": "evaluate"}, ("rejected", "the task was to train, this is to evaluate")),
        ({"examples": 0}, ("rejected", "it was trained on no examples")),
        ({"encoding": "f16"}, ("rejected", "it is encoded as f16, the task asked for f32")),
        ({"blob": None}, ("rejected", "it has 0 bytes, expected 200,000")),
        (
            {"blob": BlobRef("0" * 64, 2**31)},
            ("rejected", "it has 2,147,483,648 bytes, expected 200,000"),
        ),
    ],
)
def test_a_header_that_does_not_fit(
    federation: Federation, changes: dict[str, object], expected: tuple[str, str]
) -> None:
    liar = peer(federation)
    liar.say(Offer(liar.update(GOOD, **changes)))
    assert verdict(liar) == expected
    complete(federation)
    assert len(federation.store.updates(1)) == 2


def test_an_update_from_another_model(federation: Federation) -> None:
    liar = peer(federation)
    liar.say(Offer(liar.update(GOOD, model="ab" * 32)))
    assert verdict(liar)[0] == "rejected"
    assert verdict(liar)[1].startswith("it starts from model abababababab")
    complete(federation)


def test_a_device_that_was_not_invited(federation: Federation) -> None:
    liar = peer(federation)
    stranger = Peer(federation, "stranger")
    stranger.heard = [liar.last(Task)]
    stranger.say(Offer(stranger.update(GOOD)))
    assert verdict(stranger) == ("discarded", "stranger was not invited to round 1")
    stranger.say(*stranger.chunks(GOOD))
    assert len(federation.store.updates(1)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(federation: Federation, value: float) -> None:
    liar = peer(federation)
    vector = np.zeros(ELEMENTS, dtype="<f4")
    vector[41_234] = value
    content = vector.tobytes()
    liar.say(Offer(liar.update(content)), *liar.chunks(content))
    assert verdict(liar) == ("rejected", f"value 41234 of the vector is {value}")
    complete(federation)
    assert len(federation.store.updates(1)) == 2
    assert not any(path.name for path in (federation.folder / "coordinator/partial").iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["losses", "held_out"])
def test_metrics_that_are_not_finite(federation: Federation, value: float, where: str) -> None:
    """They are malformed: stored as JSON they could never be read again."""
    liar = peer(federation)
    change = (
        {"losses": (value,)}
        if where == "losses"
        else {"held_out": Metrics(1, {"loss": Measure(value, 1.0)})}
    )
    liar.say(Offer(liar.update(GOOD, **change)), *liar.chunks(GOOD))
    complete(federation)
    assert refusals(federation)["malformed"] == 1


def test_content_that_fails_its_digest_is_fetched_a_few_times_only(
    federation: Federation,
) -> None:
    liar = peer(federation)
    liar.say(Offer(liar.update(GOOD, blob=BlobRef("00" * 32, len(GOOD)))))
    lies = [msgspec.structs.replace(chunk, digest="00" * 32) for chunk in liar.chunks(GOOD)]
    for fetch in range(FETCHES_MAX):
        assert len([m for m in liar.heard if isinstance(m, Want)]) == fetch + 1
        liar.say(*lies)
    assert verdict(liar) == ("rejected", "its content failed the digest 3 times")
    complete(federation)
    assert not federation.store.blobs.has("00" * 32)


def test_chunks_that_do_not_belong(federation: Federation) -> None:
    liar = peer(federation)
    liar.say(Offer(liar.update(GOOD)))
    first, *_ = good = liar.chunks(GOOD)
    replace = msgspec.structs.replace
    for bad, reason in [
        (replace(first, crc32=first.crc32 ^ 1), "chunk fails its CRC"),
        (replace(first, size_bytes=len(GOOD) + 1), "chunk says 200001 bytes"),
        (replace(first, first_block=2**53 - 1), "chunk ends at"),
        (replace(first, content=b"x", crc32=0x8CDC1683), "not a whole number of blocks"),
    ]:
        liar.say(bad)
        assert reason in liar.last(Problem).reason
    other = Peer(federation, "b")
    other.say(*good)  # of another's upload: no business of b
    assert federation.store.updates(1) == []
    liar.say(*good)
    assert verdict(liar) == ("accepted", "")
    complete(federation)
    assert len(federation.store.updates(1)) == 3


def test_a_replayed_offer_gets_the_same_receipt_and_changes_nothing(
    federation: Federation,
) -> None:
    liar = peer(federation)
    offer = Offer(liar.update(GOOD))
    liar.say(offer, *liar.chunks(GOOD))
    before = federation.store.load_state()
    for _ in range(3):
        liar.say(offer, *liar.chunks(GOOD))
    assert verdict(liar) == ("accepted", "")
    assert federation.store.load_state() == before
    complete(federation)
    assert len(federation.store.updates(1)) == 3


def test_a_second_update_in_a_round_is_discarded(federation: Federation) -> None:
    liar = peer(federation)
    liar.say(Offer(liar.update(GOOD)), *liar.chunks(GOOD))
    liar.say(Offer(liar.update(GOOD, update_id="another")))
    assert verdict(liar) == ("discarded", "mallory has already answered round 1")
    complete(federation)


def test_an_old_receipt_does_not_answer_a_new_round(tmp_path: Path) -> None:
    """A known update id with another round in its header must not enter that round."""
    federation = Federation(tmp_path, devices_min=3, count=2)
    liar = peer(federation)
    first = liar.update(GOOD)
    liar.say(Offer(first), *liar.chunks(GOOD))
    for device in federation.devices.values():
        device.runner.finish()
    federation.run(lambda: federation.store.load_state().round_id == 2)
    liar.say(Offer(liar.update(GOOD, update_id=first.update_id, round_id=2)))
    assert federation.store.load_state().accepted() == ()
    complete(federation)


def test_nobody_can_occupy_the_update_id_of_another(federation: Federation) -> None:
    """Update ids are predictable; each device has a name space of its own."""
    liar = peer(federation)
    honest = Peer(federation, "a")
    honest.heard = [liar.last(Task)]
    stolen = honest.update(GOOD).update_id
    liar.say(Offer(liar.update(GOOD, update_id=stolen, round_id=99)))
    complete(federation)
    assert [u.update_id for u in federation.store.updates(1)].count(stolen) == 1
    assert len(federation.store.updates(1)) == 2


def test_an_upload_that_completes_after_its_round_is_late(tmp_path: Path) -> None:
    federation = Federation(tmp_path, devices_min=3, count=1, cohort_size=2, over_selection=1.5)
    liar = peer(federation)
    *most, last = liar.chunks(GOOD)
    liar.say(Offer(liar.update(GOOD)), *most)
    started: list[object] = []
    federation.service._start_job = started.append
    for device in federation.devices.values():
        device.runner.held = False
        device.runner.finish()
    federation.settle()
    assert federation.store.load_state().phase == "aggregating"
    liar.say(last)
    assert verdict(liar) == ("discarded", "late: round 1 has closed")
    assert len(federation.store.updates(1)) == 2


def test_two_devices_with_the_same_bits(federation: Federation) -> None:
    """Same data, same seed: same update. Both count, each once."""
    first = peer(federation)
    second = Peer(federation, "a")
    second.heard = [first.last(Task)]
    first.say(Offer(first.update(GOOD)))
    second.say(Offer(second.update(GOOD)))
    chunks = first.chunks(GOOD)
    first.say(*chunks[:2])
    second.say(*chunks)
    assert verdict(second) == ("accepted", "")
    first.say(*chunks[2:])
    assert verdict(first) == ("accepted", "")
    complete(federation)
    assert len(federation.store.updates(1)) == 3


def test_the_same_bits_as_the_answer_to_another_offer(federation: Federation) -> None:
    liar = peer(federation)
    first = liar.update(GOOD)
    second = msgspec.structs.replace(first, update_id="second", examples=7)
    liar.say(Offer(first), Offer(second), *liar.chunks(GOOD))
    assert liar.last(Receipt) == Receipt("second", "accepted")


def test_updates_offered_and_never_sent_leave_nothing_behind(federation: Federation) -> None:
    liar = peer(federation)
    partial = federation.folder / "coordinator" / "partial"
    for number in range(10):
        ref = BlobRef(f"{number:064x}", len(GOOD))
        liar.say(Offer(liar.update(GOOD, blob=ref)))
        assert len(list(partial.iterdir())) <= 2  # one upload: content and marks
    complete(federation)
    assert list(partial.iterdir()) == []


def test_an_update_damaged_on_disk_is_asked_for_again(federation: Federation) -> None:
    liar = peer(federation)
    update = liar.update(GOOD)
    federation.store.blobs.put(GOOD)
    assert update.blob is not None
    federation.store.blobs.path(update.blob.digest).write_bytes(b"rot")
    liar.say(Offer(update))
    assert liar.last(Want).digest == update.blob.digest
    liar.say(*liar.chunks(GOOD))
    assert verdict(liar) == ("accepted", "")
    complete(federation)


def test_a_greedy_want_costs_no_more_than_the_blob(federation: Federation) -> None:
    liar = peer(federation)
    liar.link.subscribe([f"{federation.topics.root}/blob/#"])
    liar.heard.clear()
    model = federation.store.models()[0].ref
    federation.now_ms += 10_000
    liar.say(Want(model.digest, tuple((0, 2**53 - 1) for _ in range(1024))))
    blocks = [m.first_block for m in liar.heard if isinstance(m, Chunk)]
    assert blocks == [0, 4, 8, 12]  # 200,000 bytes are 13 blocks: four chunks
    assert -(-200_000 // BLOCK_BYTES) == 13


def test_declining_for_others_or_other_rounds_changes_nothing(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    liar = peer(federation)
    before = federation.store.load_state()
    run_id = federation.store.fact("run_id") or ""
    liar.say(Decline(run_id, 7, "no"), Decline("another", 1, "no"))
    assert "mallory declines round 7: no" in caplog.text
    assert "mallory declines a round of another run: no" in caplog.text
    Peer(federation, "stranger").say(Decline(run_id, 1, "no"))
    assert federation.store.load_state() == before
    liar.say(Decline(run_id, 1, "no data"), Decline(run_id, 1, "again"))
    member = federation.store.load_state().member("mallory")
    assert member is not None
    assert member.answer == "declined"
    complete(federation)
    assert len(federation.store.updates(1)) == 2


def test_a_flood_of_presence_and_hello(federation: Federation) -> None:
    liar = peer(federation)
    gone = encode(Presence(False, "offline"), "x")
    events, written = len(federation.store.events()), []
    federation.store._db.set_trace_callback(
        lambda said: written.append(said) if said.startswith("INSERT") else None
    )
    for _ in range(20):
        federation.broker.route(federation.topics.presence("mallory"), gone, retain=True)
        liar.hello()
    assert len([m for m in liar.heard if isinstance(m, Welcome)]) == 21
    assert not written  # a commit waits for the disk, and so would everybody else
    assert len(federation.store.events()) == events
    federation.now_ms += 1_000
    federation.service.time_reached(federation.now_ms)
    assert "mallory" in federation.store.load_state().online
    assert federation.store.load_state().round_id == 1
    complete(federation)


# ---- the checker itself ----


def test_the_checker_finds_an_update_that_was_counted_twice(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = aggregate_job.contributions

    def twice(job: aggregate_job.AggregateJob, blobs: BlobStore) -> Iterator[Contribution]:
        first, *rest = honest(job, blobs)
        yield from (first, first, *rest)

    monkeypatch.setattr(aggregate_job, "contributions", twice)
    liar = peer(federation)
    liar.say(Offer(liar.update(GOOD)), *liar.chunks(GOOD))
    with pytest.raises(AssertionError):
        complete(federation)


def test_the_checker_finds_a_late_update_that_was_recorded_as_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug that `test_an_upload_that_completes_after_its_round_is_late` is about."""
    honest = vetting.admit
    lenient = iter([None])

    def admit(
        update: Update,
        device_id: str,
        state: RoundState,
        config: CoordinatorConfig,
        known: vetting.Known,
    ) -> vetting.Verdict | None:
        late = state.phase == "aggregating" and device_id == "mallory"
        return next(lenient) if late else honest(update, device_id, state, config, known)

    monkeypatch.setattr(intake, "admit", admit)
    with pytest.raises(AssertionError):
        test_an_upload_that_completes_after_its_round_is_late(tmp_path)


def test_more_offers_for_a_past_round_are_answered_and_cost_no_write(
    federation: Federation,
) -> None:
    liar = peer(federation)
    update = liar.update(GOOD)
    complete(federation)
    store = federation.store
    liar.say(Offer(update))
    assert liar.last(Receipt).verdict == "discarded"
    discarded, events = store.counts()["discarded: late"], len(store.events())
    changes = store._db.total_changes
    for number in range(50):
        liar.say(Offer(msgspec.structs.replace(update, update_id=f"u{number}")))
        assert liar.last(Receipt).update_id == f"u{number}"
        assert liar.last(Receipt).verdict == "discarded"
    assert store._db.total_changes == changes
    assert len(store.events()) == events
    assert store.counts()["discarded: late"] == discarded + 50


def test_who_was_here_long_ago_is_not_expected_back(federation: Federation) -> None:
    with federation.store.transaction():
        for number in range(5_000):
            federation.store.heard(f"d{number}", "{}", federation.now_ms)
    federation.kill_coordinator()
    federation.boot_coordinator()
    assert federation.service._fleet.spread_ms() == 100_000
    federation.kill_coordinator()
    federation.now_ms += LATELY_MS + 1
    federation.boot_coordinator()
    assert federation.service._fleet.spread_ms() == 0
    with federation.store.transaction():  # of those who never left, nothing newer is recorded
        online = tuple(f"d{number}" for number in range(5_000))
        federation.store.save_state(RoundState(online=online))
    federation.kill_coordinator()
    federation.boot_coordinator()
    assert federation.service._fleet.spread_ms() == 100_000


def test_one_device_is_told_of_a_few_problems_and_all_are_counted(federation: Federation) -> None:
    liar = peer(federation)
    for _ in range(100):
        liar.say_bytes(b"junk")
    told = [body for body in liar.heard if isinstance(body, Problem)]
    assert len(told) == PROBLEMS_MAX
    assert refusals(federation)["malformed"] == 100
    federation.now_ms += PROBLEMS_MS
    federation.service.time_reached(federation.now_ms)
    liar.say_bytes(b"junk")
    assert len([body for body in liar.heard if isinstance(body, Problem)]) == PROBLEMS_MAX + 1


@pytest.mark.parametrize(("mode", "withdrawn"), [("synchronous", 3), ("buffered", 13)])
def test_a_connection_clears_only_what_can_have_been_on_offer(
    tmp_path: Path, mode: str, withdrawn: int
) -> None:
    size: dict[str, Any] = {"cohort_size": None, "buffer_size": 3} if mode == "buffered" else {}
    federation = Federation(tmp_path, devices_min=3, count=1, mode=mode, **size)
    store, service = federation.store, federation.service
    with store.transaction():
        for version in range(1, 31):
            store.add_model(version, BlobRef(f"{version:064x}", 4), 0, 0)
    past = [model.version for model in service._supply.past_models()]
    assert past == list(range(30 - withdrawn, 30))


def test_a_large_cohort_is_logged_by_a_handful_and_a_count() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few([f"d{number}" for number in range(10_000)]) == "d0, d1, d2, d3, d4 … (10000)"


def test_what_nobody_has_sealed_is_counted_and_told_and_changes_nothing(
    federation: Federation,
) -> None:
    liar = peer(federation)
    before, heard = federation.service._state, len(liar.heard)
    up = federation.topics.up("mallory")
    for reason in ("seal replayed: its number is 5, and 9 was heard already", "seal missing"):
        federation.service.link_event(Unsealed(up, reason, "m7"), federation.now_ms)
    federation.service.link_event(Unsealed("elsewhere", "seal missing"), federation.now_ms)
    federation.settle()
    assert federation.service._state == before
    assert liar.heard[heard:] == [
        Problem("m7", "seal replayed: its number is 5, and 9 was heard already"),
        Problem("m7", "seal missing"),
    ]
    counts = federation.store.counts()
    assert (counts["refused: seal replayed"], counts["refused: seal missing"]) == (1, 1)
    complete(federation)


def test_a_question_beside_the_count_is_answered_without_a_complaint(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    liar = peer(federation)
    counts = federation.store.counts()
    up = federation.topics.up("mallory")
    federation.service.link_event(Unsealed(up, UNNUMBERED, "m7"), federation.now_ms)
    federation.settle()
    assert liar.heard[-1] == Problem("m7", UNNUMBERED)
    assert federation.store.counts() == counts
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_who_is_a_member_no_more_is_gone(federation: Federation) -> None:
    peer(federation)
    assert federation.service._state.is_online("mallory")
    event = Unsealed(federation.topics.presence("mallory"), NO_MEMBER)
    federation.service.link_event(event, federation.now_ms)
    assert not federation.service._state.is_online("mallory")
    assert federation.store.counts()["refused: seal of no member"] == 1
    federation.service.link_event(event, federation.now_ms)
    complete(federation)


def test_no_round_waits_for_a_device_that_is_revoked(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection is cut at once, so that it says nothing more, not even that it goes."""
    peer(federation)
    path = tmp_path / "members.json"
    key = {"key": "00" * 32}
    path.write_text(json.dumps({"devices": {"a": key, "b": key, "mallory": key}}))
    service = federation.service
    service._revocations = Revocations(Members(path))
    path.with_suffix(".new").write_text(json.dumps({"devices": {"a": key, "b": key}}))
    service.time_reached(federation.now_ms)
    assert "mallory" in {member.device_id for member in service._state.at_work()}
    path.with_suffix(".new").replace(path)
    deadline_at_ms = service.next_deadline_at_ms()
    assert deadline_at_ms is not None
    assert deadline_at_ms <= federation.now_ms + 2_000
    service.time_reached(deadline_at_ms)
    assert {member.device_id for member in service._state.at_work()} == {"a", "b"}
    assert not service._state.is_online("mallory")
    assert "mallory is revoked: round 1 waits for it no more" in caplog.text
    path.write_text("{")  # who cannot be read about is not taken for revoked
    service.time_reached(deadline_at_ms + 2_000)
    assert {member.device_id for member in service._state.at_work()} == {"a", "b"}
