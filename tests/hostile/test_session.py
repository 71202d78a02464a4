"""A coordinator that lies, and disks that forget: the device neither stops nor spins."""

from __future__ import annotations

import errno
import logging
import os
import random
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_client.saved_session import SavedSession
from edge_client.session import Session
from edge_client.session_events import TaskDone
from edge_client.session_machine import (
    RESTARTS_MAX,
)
from fedtide import failpoints
from fedtide.blobs import BlobStore, blocks_count, make_chunk, split
from fedtide.bundle import sha256_hex
from fedtide.errors import StateError
from fedtide.manifest import MANIFEST_NAME
from fedtide.memory import MemoryTransport
from fedtide.messages import (
    AnyMessage,
    Beacon,
    BlobRef,
    Chunk,
    Decline,
    Envelope,
    Hello,
    Offer,
    Presence,
    Receipt,
    Task,
    Want,
    Welcome,
    decode,
    encode,
)
from fedtide.plan import Plan
from fedtide.topics import Topics
from fedtide.transport import LinkEvent, Received
from fedtide.vectors import encode_vector
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Device, Federation, learn
from tests.property.test_session_machine import update_of

MODEL = encode_vector(learn("model", np.zeros(ELEMENTS, dtype=np.float32)), "f32")


class Voice:
    """Speaks as the coordinator of a federation whose own has gone."""

    def __init__(self, folder: Path) -> None:
        self.federation = Federation(folder)
        self.federation.kill_coordinator()
        self.federation.settle()
        self.federation.broker.retained.clear()
        self.federation.add("d")
        self.heard: list[AnyMessage] = []
        self.presence: list[Presence] = []
        self.blobs = BlobStore(folder / "voice")
        self.manifest = self.put(self.federation.bundle.fetch(MANIFEST_NAME))
        self.model = self.put(MODEL)
        for name in ("train", "evaluate"):
            self.put(name.encode())
        link = MemoryTransport(self.federation.broker, self._deliver)
        link.start()
        link.subscribe([self.federation.topics.up("+"), self.federation.topics.presence("+")])
        self.federation.settle()

    @property
    def device(self) -> Device:
        return self.federation.devices["d"]

    @property
    def session(self) -> Session:
        return self.device.session

    def put(self, content: bytes) -> BlobRef:
        return self.blobs.put(content)

    def _deliver(self, event: LinkEvent) -> None:
        if isinstance(event, Received):
            envelope = decode(event.payload)
            assert isinstance(envelope, Envelope), envelope
            if isinstance(envelope.body, Presence):
                self.presence.append(envelope.body)
            else:
                self.heard.append(envelope.body)

    def publish(self, ref: BlobRef, *, grid: int = 7, lies: bool = False) -> None:
        """Retain all chunks of a blob."""
        for piece in split([(0, blocks_count(ref.size_bytes))], grid):
            chunk = make_chunk(ref, self.blobs.path(ref.digest), piece)
            if lies:
                chunk = msgspec.structs.replace(chunk, crc32=chunk.crc32 ^ 1)
            topic = self.federation.topics.chunk(ref.digest, piece[0])
            self.federation.broker.route(topic, encode(chunk, "c"), retain=True)
        self.federation.settle()

    def withdraw(self, ref: BlobRef) -> None:
        """Whoever wants it now gets it from nobody."""
        retained = self.federation.broker.retained
        for topic in [topic for topic in retained if ref.digest in topic]:
            del retained[topic]

    def publish_all(self) -> None:
        for digest in self.blobs.digests():
            self.publish(BlobRef(digest, len(self.blobs.read(digest))))

    def say(self, *messages: AnyMessage) -> None:
        for message in messages:
            self.say_bytes(encode(message, "v.1"))

    def say_bytes(self, payload: bytes) -> None:
        broker, topics = self.federation.broker, self.federation.topics
        broker.route(topics.down("d"), payload, retain=False)
        self.federation.settle()

    def welcome(self, **changes: object) -> Welcome:
        return msgspec.structs.replace(Welcome(self.manifest, self.model, 0, 7, 30_000), **changes)

    def task(self, round_id: int = 1, **changes: object) -> Task:
        task = Task(
            run_id="run",
            round_id=round_id,
            kind="train",
            bundle=self.manifest,
            model=self.model,
            model_version=0,
            chunk_blocks=7,
            plan=Plan(),
            encoding="f32",
            deadline_ms=60_000,
        )
        return msgspec.structs.replace(task, **changes)

    def wants(self) -> list[Want]:
        return [m for m in self.heard if isinstance(m, Want)]

    def offers(self) -> list[Offer]:
        return [m for m in self.heard if isinstance(m, Offer)]

    def pass_time(self, duration_ms: int, wakes_max: int) -> None:
        """Wake the device whenever it wants to be woken; it must not want that too often."""
        end = self.federation.now_ms + duration_ms
        for _ in range(wakes_max):
            at_ms = self.session.next_deadline_at_ms()
            if at_ms is None or at_ms > end:
                self.federation.now_ms = end
                return
            self.federation.now_ms = max(self.federation.now_ms, at_ms)
            self.session.time_reached(self.federation.now_ms)
            self.federation.settle()
        raise AssertionError(f"woken {wakes_max} times in {duration_ms} ms")


@pytest.fixture
def voice(tmp_path: Path) -> Voice:
    return Voice(tmp_path)


def test_noise_on_its_topics(voice: Voice) -> None:
    noise = random.Random(3)
    topics = voice.federation.topics
    for _ in range(200):
        for topic in (topics.down("d"), topics.beacon):
            payload = noise.randbytes(noise.randrange(100))
            voice.federation.broker.route(topic, payload, retain=False)
    voice.federation.settle()
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    assert len(voice.offers()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"round_id": -1},
        {"round_id": 2**53},
        {"run_id": "../../etc"},
        {"kind": "destroy"},
        {"chunk_blocks": 0},
        {"chunk_blocks": 1_000_000},
        {"encoding": "f8"},
        {"deadline_ms": -1},
        {"model": {"digest": "../../../etc/passwd", "size_bytes": 5}},
        {"model": {"digest": "0" * 64, "size_bytes": 2**40}},
        {"model": {"digest": "0" * 64 + "\n", "size_bytes": 4}},
        {"plan": {"epochs": 0}},
        {"plan": {"learning_rate": float("nan")}},
        {"plan": {"batch_size": -3}},
        {"plan": {"__class__": "os.system"}},
    ],
)
def test_a_task_with_impossible_values_is_no_task(voice: Voice, changes: dict[str, object]) -> None:
    body = {"type": "task", **msgspec.to_builtins(voice.task()), **changes}
    voice.say_bytes(msgspec.msgpack.encode({"v": 1, "id": "x", "body": body}))
    assert voice.session._state.durable.task is None


def test_a_bundle_that_names_paths_outside_itself_is_declined(voice: Voice) -> None:
    raw = voice.federation.bundle.fetch(MANIFEST_NAME)
    raw = raw.replace(b': "train"', b': "../../train"').replace(b'"train": {', b'"../../train": {')
    manifest = voice.put(raw)
    voice.publish_all()
    voice.say(voice.welcome(bundle=manifest), voice.task(bundle=manifest))
    declined = voice.heard[-1]
    assert isinstance(declined, Decline)
    assert "'../../train' is not a plain path" in declined.reason


def test_a_welcome_to_an_unusable_bundle_stops_nobody(voice: Voice) -> None:
    junk = voice.put(b"no manifest")
    voice.publish_all()
    voice.say(voice.welcome(bundle=junk))
    voice.say(voice.welcome(), voice.task())
    assert len(voice.offers()) == 1


def test_an_empty_file_in_a_manifest_is_declined(voice: Voice) -> None:
    raw = voice.federation.bundle.fetch(MANIFEST_NAME)
    broken = voice.put(raw.replace(b'"size_bytes": 5', b'"size_bytes": 0'))
    voice.publish_all()
    voice.say(voice.task(bundle=broken))
    assert isinstance(voice.heard[-1], Decline)


def changed_manifest(voice: Voice, old: bytes, new: bytes) -> BlobRef:
    raw = voice.federation.bundle.fetch(MANIFEST_NAME)
    assert old in raw
    ref = voice.put(raw.replace(old, new))
    voice.publish_all()
    return ref


@pytest.mark.parametrize("what", ["manifest", "graph", "model"])
def test_sizes_that_cannot_be_are_declined_before_the_disk_is_touched(
    voice: Voice, what: str
) -> None:
    """A download takes its place on the disk, and its marks in memory, at once."""
    huge = 2**31
    task = voice.task()
    voice.publish_all()
    if what == "manifest":
        task = voice.task(bundle=BlobRef("ab" * 32, huge))
    elif what == "graph":
        old, new = b'"size_bytes": 5', b'"size_bytes": 2000000000'
        task = voice.task(bundle=changed_manifest(voice, old, new))
    else:
        task = voice.task(model=BlobRef("cd" * 32, huge))
    voice.say(voice.welcome(bundle=task.bundle, model=task.model), task)
    declined = voice.heard[-1]
    assert isinstance(declined, Decline)
    assert "is said to have" in declined.reason
    folder = voice.device.folder / "partial"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000


def test_the_model_is_fetched_after_the_manifest_that_tells_its_size(voice: Voice) -> None:
    voice.publish(voice.model)
    voice.say(voice.welcome(), voice.task())
    assert voice.session.blobs.digests() == []
    voice.publish_all()
    assert voice.model.digest in voice.session.blobs.digests()


def test_the_data_are_looked_at_once_for_each_bundle_before_any_task(voice: Voice) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.welcome())
    assert voice.device.runner.checked == [voice.manifest.digest]


def test_a_hello_asked_for_all_the_time_is_refused(voice: Voice) -> None:
    """Else the two would talk as fast as the network carries it."""
    voice.say(voice.welcome(hello_ms=0))
    assert not voice.session._state.welcomed


def test_an_update_in_the_outbox_and_no_coordinator_does_not_spin(voice: Voice) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    voice.device.kill()
    voice.federation.settle()
    voice.device.boot()
    voice.federation.settle()
    voice.heard.clear()
    voice.pass_time(600_000, wakes_max=40)
    assert {type(m) for m in voice.heard} == {Hello}
    voice.say(voice.welcome())
    assert len(voice.offers()) == 1


def test_chunks_that_fail_their_crc_are_asked_for_again_ever_more_slowly(voice: Voice) -> None:
    voice.publish_all()
    voice.publish(voice.model, lies=True)
    voice.say(voice.task())
    voice.pass_time(300_000, wakes_max=60)
    assert 8 <= len(voice.wants()) <= 20
    voice.publish(voice.model)
    voice.say(voice.welcome())
    assert len(voice.offers()) == 1


def test_a_blob_whose_content_is_another(voice: Voice) -> None:
    """Right chunks, wrong digest: all is fetched again, and the truth heals it."""
    voice.publish_all()
    truth = {
        topic: payload
        for topic, payload in voice.federation.broker.retained.items()
        if voice.model.digest in topic
    }
    for topic, payload in truth.items():
        envelope = decode(payload)
        assert isinstance(envelope, Envelope)
        assert isinstance(envelope.body, Chunk)
        content = bytes(len(envelope.body.content))
        lie = msgspec.structs.replace(envelope.body, content=content, crc32=zlib.crc32(content))
        voice.federation.broker.retained[topic] = encode(lie, "c")
    voice.say(voice.task())
    assert voice.offers() == []
    voice.federation.broker.retained.update(truth)
    voice.pass_time(120_000, wakes_max=200)
    voice.say(voice.welcome())
    assert len(voice.offers()) == 1


def test_a_greedy_want_sends_the_blob_once(voice: Voice) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    blob = voice.offers()[0].update.blob
    assert blob is not None
    voice.say(Want(blob.digest, tuple((start, 2**53 - 1) for start in range(1024))))
    sent = [m.first_block for m in voice.heard if isinstance(m, Chunk)]
    assert sent == sorted(set(sent))
    assert sent[0] == 0


def test_a_want_or_receipt_for_what_it_never_had(voice: Voice) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    before = voice.session._state
    voice.say(Want("ab" * 32, ((0, 1),)), Receipt("unknown", "accepted"))
    assert voice.session._state == before
    assert not any(isinstance(m, Chunk) for m in voice.heard)


def test_duplicate_and_old_tasks_are_harmless(voice: Voice) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.task(5))
    update = voice.offers()[0].update
    for round_id in (5, 4, 5, 1):
        voice.say(voice.task(round_id))
    assert {m.update.update_id for m in voice.offers()} == {update.update_id}
    voice.say(Receipt(update.update_id, "accepted"))
    voice.heard.clear()
    voice.say(voice.task(5))
    assert voice.heard == []


def test_two_updates_of_the_same_bits(voice: Voice) -> None:
    """A receipt for one must not take the content of the other."""
    voice.publish_all()
    voice.say(voice.welcome(), voice.task(1), voice.task(2))
    first, second = (update for update in voice.session._state.durable.outbox)
    assert first.blob == second.blob
    assert first.blob is not None
    voice.say(Receipt(first.update_id, "discarded"))
    assert voice.session.blobs.has(first.blob.digest)
    voice.say(Receipt(second.update_id, "accepted"))
    assert not voice.session.blobs.has(first.blob.digest)


# ---- disks ----


def restart(voice: Voice) -> None:
    voice.device.kill()
    voice.federation.settle()
    voice.device.boot()
    voice.federation.settle()


def test_a_power_cut_between_the_last_block_and_the_digest(voice: Voice) -> None:
    """All blocks are there, nothing is missing, and yet the blob is not finished."""
    voice.publish_all()
    voice.withdraw(voice.model)
    voice.say(voice.task())
    partial = voice.session.blobs.open_partial(voice.model)
    for piece in split([(0, blocks_count(voice.model.size_bytes))]):
        partial.accept(make_chunk(voice.model, voice.blobs.path(voice.model.digest), piece))
    restart(voice)
    voice.say(voice.welcome())
    assert len(voice.offers()) == 1


@pytest.mark.parametrize("what", ["model", "manifest", "graph"])
def test_a_download_that_a_power_cut_damaged_is_fetched_again(voice: Voice, what: str) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    voice.say(Receipt(voice.offers()[0].update.update_id, "accepted"))
    graph = BlobRef(sha256_hex(b"train"), 5)
    ref = {"model": voice.model, "manifest": voice.manifest, "graph": graph}[what]
    voice.heard.clear()
    assert voice.session.blobs.has(ref.digest)
    voice.session.blobs.path(ref.digest).write_bytes(bytes(ref.size_bytes))
    voice.say(voice.task(round_id=2))
    assert [type(m) for m in voice.heard if isinstance(m, Offer | Decline)] == [Offer]


def test_the_broker_alone_serves_a_healthy_device(voice: Voice) -> None:
    """Nothing is asked of the coordinator while the retained chunks come."""
    voice.publish_all()
    voice.say(voice.task())
    voice.pass_time(10_000, wakes_max=20)
    assert voice.wants() == []
    assert sha256_hex(MODEL) in voice.session.blobs.digests()


def test_a_beacon_of_another_session_brings_a_hello(voice: Voice) -> None:
    topics = voice.federation.topics
    voice.heard.clear()
    for session in ("one", "one", "two"):
        payload = encode(Beacon(True, session), "b")
        voice.federation.broker.route(topics.beacon, payload, retain=True)
        voice.federation.settle()
    assert [type(m) for m in voice.heard] == [Hello, Hello]


def test_the_state_of_another_device_is_refused(voice: Voice) -> None:
    """Its update would be offered, and counted, once more under this name."""
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    voice.device.kill()
    for device_id, federation in (("e", "test"), ("d", "other")):
        link = MemoryTransport(voice.federation.broker, lambda _event: None)
        topics = Topics(federation)
        copy = Session(device_id, topics, voice.device.folder, link, voice.device.runner)
        with pytest.raises(StateError, match="'d' of federation 'test'") as caught:
            copy.start(0)
        assert repr(device_id) in str(caught.value)
        assert repr(federation) in str(caught.value)


def test_a_decline_made_at_the_start_is_saved(voice: Voice) -> None:
    voice.say(voice.welcome(), voice.task())  # whose blobs never come
    for _ in range(RESTARTS_MAX + 1):
        restart(voice)
    saved = SavedSession(voice.device.folder, "test", "d").load()
    assert saved.task is None
    assert "went down" in saved.declined_because
    voice.say(voice.welcome(), voice.task())
    assert isinstance(voice.heard[-1], Decline)


def installation(voice: Voice) -> str:
    return next(m.installation for m in reversed(voice.heard) if isinstance(m, Hello))


def test_an_installation_keeps_its_name_and_another_has_another(voice: Voice) -> None:
    restart(voice)
    first = installation(voice)
    restart(voice)
    assert installation(voice) == first != ""
    for path in voice.device.folder.glob("session.*"):
        path.unlink()
    restart(voice)
    assert installation(voice) != first


def test_a_session_damaged_in_both_copies_begins_afresh(
    voice: Voice, caplog: pytest.LogCaptureFixture
) -> None:
    """All that is lost is an update without a receipt; done again, it counts once."""
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    update = voice.offers()[0].update
    for path in voice.device.folder.glob("session.*"):
        path.write_bytes(b"rot")
    restart(voice)
    assert "starting afresh" in caplog.text
    voice.say(voice.welcome(), voice.task())
    assert voice.offers()[-1].update == update


@pytest.mark.parametrize("damage", ["gone", "rotten"])
def test_an_update_that_the_disk_lost_is_made_again(voice: Voice, damage: str) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    update = voice.offers()[0].update
    assert update.blob is not None
    path = voice.session.blobs.path(update.blob.digest)
    path.unlink() if damage == "gone" else path.write_bytes(b"rot")
    restart(voice)
    assert voice.session._state.durable.outbox == ()
    voice.say(voice.welcome(), voice.task())
    assert voice.offers()[-1].update == update
    assert voice.session.blobs.has(update.blob.digest)


def test_an_update_that_vanishes_while_it_is_sent_is_made_again(voice: Voice) -> None:
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    blob = voice.offers()[0].update.blob
    assert blob is not None
    voice.session.blobs.path(blob.digest).unlink()
    voice.say(Want(blob.digest, ((0, 1),)))
    assert voice.session._state.durable.outbox == ()
    voice.say(voice.task())
    assert len(voice.offers()) == 2


def test_an_update_that_the_disk_cannot_read_is_made_again(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and intact as far as its name tells: without this it is offered for ever."""
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    blob = voice.offers()[0].update.blob
    assert blob is not None

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("fedtide.sending.make_chunk", fail)
        voice.say(Want(blob.digest, ((0, 1),)))
    assert voice.session._state.durable.outbox == ()
    voice.say(voice.task())
    assert len(voice.offers()) == 2


def test_a_device_that_is_not_invited_fetches_the_bundle_and_no_model(voice: Voice) -> None:
    """On a metered link each model that no task asks for is paid for nothing."""
    voice.publish_all()
    voice.say(voice.welcome(), voice.welcome())
    restart(voice)
    voice.say(voice.welcome())
    graphs = {sha256_hex(name) for name in (b"train", b"evaluate")}
    assert set(voice.session.blobs.digests()) == {voice.manifest.digest, *graphs}
    assert list((voice.device.folder / "partial").iterdir()) == []


def test_a_device_that_only_watches_from_now_on_gives_up_its_model(voice: Voice) -> None:
    """Each round brings another one; a task that begins with the old one will not come."""
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    voice.say(Receipt(voice.offers()[0].update.update_id, "accepted"))
    old, new = voice.model, encode_vector(np.ones(ELEMENTS, np.float32), "f32")
    voice.say(voice.welcome())
    assert voice.session.blobs.has(old.digest)
    voice.model = voice.put(new)
    voice.publish(voice.model)
    voice.say(voice.welcome())
    assert not {old.digest, voice.model.digest} & set(voice.session.blobs.digests())


def test_a_model_that_is_here_is_not_fetched_again(voice: Voice) -> None:
    """A round that is abandoned is followed by another one from the same model."""
    voice.publish_all()
    voice.say(voice.welcome(), voice.task())
    voice.withdraw(voice.model)
    voice.say(voice.welcome(), voice.task(round_id=2))
    assert [offer.update.round_id for offer in voice.offers()][-1] == 2
    assert voice.wants() == []


def test_what_an_overtaken_task_needed_is_not_fetched_for_an_idle_device(voice: Voice) -> None:
    voice.publish_all()
    voice.withdraw(voice.model)
    voice.say(voice.welcome(), voice.task())
    voice.pass_time(5_000, wakes_max=20)
    assert voice.wants()
    voice.say(voice.task(round_id=2, bundle=BlobRef("ab" * 32, 2**31)))
    assert isinstance(voice.heard[-1], Decline)
    voice.heard.clear()
    voice.pass_time(20_000, wakes_max=20)
    assert voice.wants() == []


class Full:
    """A disk without room, until the test makes some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        self.step, self.times = step, 0
        self.full = True
        monkeypatch.setattr(failpoints, "_listener", self)

    def __call__(self, step: str) -> None:
        if self.full and step == self.step:
            self.times += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_delays_a_download(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    voice.publish_all()
    disk = Full(monkeypatch, "disk: write")
    voice.say(voice.welcome())  # saves nothing, fetches
    voice.pass_time(600_000, wakes_max=60)
    assert 4 <= disk.times <= 20
    assert any("the disk is full" in presence.reason for presence in voice.presence)
    disk.full = False
    voice.pass_time(300_000, wakes_max=60)
    assert sha256_hex(b"train") in voice.session.blobs.digests()


def test_a_full_disk_delays_a_task_and_its_update(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we heard is said again; what happened here is kept until it can be saved."""
    voice.publish_all()
    voice.say(voice.welcome())
    voice.device.runner.held = True
    disk = Full(monkeypatch, "disk: write")
    voice.say(voice.task())
    assert voice.session._state.durable.task is None, "not on disk, not accepted"
    disk.full = False
    voice.say(voice.task())
    blob_put = voice.session.blobs.put(b"some update")
    disk.full = True
    update = msgspec.structs.replace(
        update_of(voice.task()), model=voice.model.digest, blob=blob_put
    )
    voice.session.task_event(TaskDone(update), voice.federation.now_ms)
    assert voice.offers() == [], "nothing follows from what is not on disk"
    voice.pass_time(120_000, wakes_max=60)
    disk.full = False
    voice.say(voice.welcome())
    assert any("the disk is full" in presence.reason for presence in voice.presence)
    voice.pass_time(300_000, wakes_max=60)
    voice.say(voice.welcome())
    assert voice.offers()[0].update == update
    disk.full = True
    voice.say(Receipt(update.update_id, "accepted"))
    assert len(voice.session._state.durable.outbox) == 1
    disk.full = False
    voice.say(Receipt(update.update_id, "accepted"))
    assert len(voice.session._state.durable.outbox) == 0


def test_a_newer_task_waits_for_the_update_that_waits_for_room(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is smaller than the update: it must not take the room, and the update's place."""
    voice.publish_all()
    voice.say(voice.welcome())
    voice.device.runner.held = True
    voice.say(voice.task())
    blob = voice.session.blobs.put(b"some update")
    update = msgspec.structs.replace(update_of(voice.task()), model=voice.model.digest, blob=blob)
    disk = Full(monkeypatch, "disk: write")
    voice.session.task_event(TaskDone(update), voice.federation.now_ms)
    voice.say(voice.task(round_id=2))
    assert voice.session._state.durable.task == voice.task()
    disk.full = False
    voice.say(voice.task(round_id=2))
    assert voice.session._state.durable.task == voice.task(round_id=2)
    assert voice.session._state.durable.outbox == (update,)
    assert voice.session.blobs.has(blob.digest)


def test_a_coordinator_that_never_answers_is_told_of(
    voice: Voice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    voice.pass_time(3_600_000, wakes_max=200)
    said = [r.message for r in caplog.records if "no coordinator of federation 'test'" in r.message]
    assert "has answered yet" in said.pop(0)
    assert 3 <= len(said) <= 8
    assert "for 2 minutes" in said[0]
    assert "no coordinator of federation 'test'" in voice.presence[-1].reason
    voice.say(voice.welcome())
    voice.pass_time(1_000, wakes_max=10)
    assert "no coordinator" not in voice.presence[-1].reason
