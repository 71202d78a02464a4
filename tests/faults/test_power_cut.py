"""Power cuts at every moment of a short history: what was promised is there, and never a mix."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from edge_client.local_state import LocalStates
from edge_client.optimizers import OptimizerState
from edge_client.saved_session import SavedSession
from fedtide.blobs import BlobStore, blocks_count, make_chunk
from fedtide.bundle import sha256_hex
from fedtide.files import write_atomically
from fedtide.generations import Generations
from fedtide.messages import BlobRef, Envelope, Offer, Receipt, Task, decode
from fedtide.plan import Plan
from simulator.faults.fake_learning import fake_bundle
from tests.faults.conftest import Record
from tests.faults.power_cut import Deaf, Disk, sweep
from tests.federation import Federation

History = Callable[[Disk, Path], None]
Check = Callable[[Path, list[Any]], None]

CONTENTS = [random.Random(size).randbytes(size) for size in (700, 3000, 100, 3000, 1500)]
"""Saves that grow, shrink and span several sectors."""
SMALL = 500
"""Elements of the model: a disk is copied a few thousand times."""


def generations_history(disk: Disk, folder: Path) -> None:
    generations = Generations(folder / "state")
    generations.load()
    for content in CONTENTS:
        generations.save(content)
        disk.promise(content)


def generations_check(folder: Path, promises: list[Any]) -> None:
    found = Generations(folder / "state").load()
    assert found in _before_or_after(promises)


def atomic_history(disk: Disk, folder: Path) -> None:
    for content in CONTENTS:
        write_atomically(folder / "file", content)
        disk.promise(content)


def atomic_check(folder: Path, promises: list[Any]) -> None:
    path = folder / "file"
    assert (path.read_bytes() if path.exists() else None) in _before_or_after(promises)


def _before_or_after(promises: list[Any]) -> list[bytes | None]:
    return [[None, *CONTENTS][len(promises)], *CONTENTS[len(promises) :][:1]]


def blobs_history(disk: Disk, folder: Path) -> None:
    """One blob put whole, one that arrives in blocks and is kept, one that is left half way."""
    store = BlobStore(folder)
    disk.promise(store.put(CONTENTS[0]))
    source = BlobStore(folder.parent / "source")
    for number in (1, 2):
        ref = source.put(random.Random(number).randbytes(40_000))
        partial = store.open_partial(ref)
        for block in range(blocks_count(ref.size_bytes) - (number == 2)):
            chunk = make_chunk(ref, source.path(ref.digest), (block, 1))
            assert partial.accept(chunk) is None
        if partial.complete:
            assert partial.content() is not None
            partial.keep(durable=True)
            disk.promise(ref)


def blobs_check(folder: Path, promises: list[Any]) -> None:
    store = BlobStore(folder)
    for ref in promises:
        assert sha256_hex(store.read(ref.digest)) == ref.digest
    for number in (1, 2):  # whatever is left of an arriving blob, it can be completed
        content = random.Random(number).randbytes(40_000)
        ref = BlobRef(sha256_hex(content), len(content))
        if store.has(ref.digest):
            continue
        source = folder / "source"
        source.write_bytes(content)
        partial = store.open_partial(ref)
        for piece in partial.missing():
            assert partial.accept(make_chunk(ref, source, piece)) is None
        assert partial.content() == content
        partial.keep(durable=True)
        assert store.read(ref.digest) == content


HISTORIES: dict[str, tuple[History, Check]] = {
    "generations": (generations_history, generations_check),
    "write_atomically": (atomic_history, atomic_check),
    "blobs": (blobs_history, blobs_check),
}


def recorded(tmp_path: Path, history: History, deaf: Deaf = "") -> Disk:
    folder = tmp_path / "disk"
    folder.mkdir()
    with Disk(folder, deaf) as disk:
        history(disk, folder)
    return disk


@pytest.mark.parametrize("name", HISTORIES)
def test_what_was_promised_survives_a_power_cut_at_any_moment(
    name: str, tmp_path: Path, record: Record
) -> None:
    history, check = HISTORIES[name]
    disk = recorded(tmp_path, history)
    tried = sweep(disk, tmp_path / "after", check, mixes=8)
    assert tried > 15
    record({"cuts_replayed": tried})


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("deaf", ["file", "folder"])
def test_a_forgotten_sync_is_caught(name: str, deaf: Deaf, tmp_path: Path) -> None:
    history, check = HISTORIES[name]
    disk = recorded(tmp_path, history, deaf)
    with pytest.raises(AssertionError, match="power cut at moment"):
        sweep(disk, tmp_path / "after", check, mixes=8)


def local_states_history(disk: Disk, folder: Path, rounds: int = 3) -> None:
    states = LocalStates(folder)
    for round_id in range(1, rounds + 1):
        values = np.full(300, round_id, np.float32)
        states.save(_task(round_id), values, OptimizerState(0, ()))
        disk.promise(round_id)


def _task(round_id: int) -> Task:
    blob = BlobRef("0" * 64, 1)
    return Task("run", round_id, "train", blob, blob, 0, 7, Plan(), "f32", 1000)


def local_states_check(folder: Path, promises: list[Any]) -> None:
    done = len(promises)
    manifest = fake_bundle(300, local=300).manifest
    for round_id in (done + 1, done + 2):  # the round that may be cut short, and the one after it
        values = LocalStates(folder).load(_task(round_id), manifest).values
        found = 0 if values is None else int(values[0])
        assert values is None or (values == found).all()
        assert found in range(done, round_id)


def test_a_rounds_local_state_survives(tmp_path: Path, record: Record) -> None:
    disk = recorded(tmp_path, local_states_history)
    tried = sweep(disk, tmp_path / "after", local_states_check)
    assert tried > 20
    record({"cuts_replayed": tried})


class Witness:
    """Hears everything that is said, and notes what it promises before it is heard."""

    def __init__(self, disk: Disk, federation: Federation) -> None:
        self._disk = disk
        self._route = federation.broker.route
        federation.broker.route = self._hear  # type: ignore[method-assign]

    def _hear(self, topic: str, payload: bytes, *, retain: bool) -> None:
        envelope = decode(payload) if payload else None
        if isinstance(envelope, Envelope) and isinstance(envelope.body, Offer | Receipt):
            self._disk.promise(envelope.body)
        self._route(topic, payload, retain=retain)


def federation_check(folder: Path, promises: list[Any]) -> None:
    """An update is with the device until its receipt is said; from then on with the coordinator."""
    offers = {said.update.update_id: said.update for said in promises if isinstance(said, Offer)}
    receipts = {said.update_id for said in promises if isinstance(said, Receipt)}
    device, coordinator = folder / "d", folder / "coordinator"
    outbox = SavedSession(device, "test", "d").load().outbox
    for update_id, update in offers.items():
        if update.blob is None:
            continue
        if update_id in receipts:
            BlobStore(coordinator).read(update.blob.digest)
        else:
            assert update_id in [kept.update_id for kept in outbox]
            BlobStore(device).read(update.blob.digest)


def federation_recorded(tmp_path: Path, deaf: Deaf = "") -> Disk:
    """A round of one device, from the first start of both; SQLite syncs for itself."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with (
        mock.patch("tests.federation.ELEMENTS", SMALL),
        mock.patch("tests.federation.fake_bundle", partial(fake_bundle, SMALL)),
        Disk(folder, deaf, ignored=lambda name: "coordinator.db" in name) as disk,
    ):
        federation = Federation(folder, count=1, cohort_size=1)
        Witness(disk, federation)
        federation.add("d")
        federation.run(federation.finished)
        federation.kill_coordinator()
    assert any(isinstance(said, Receipt) for said in disk.promises)
    return disk


def test_an_update_that_was_offered_or_accepted_survives(tmp_path: Path, record: Record) -> None:
    disk = federation_recorded(tmp_path)
    tried = sweep(disk, tmp_path / "after", federation_check, mixes=1)
    assert tried > 100
    record({"cuts_replayed": tried})


@pytest.mark.parametrize("deaf", ["file", "folder"])
def test_a_promise_without_a_sync_is_caught(deaf: Deaf, tmp_path: Path) -> None:
    disk = federation_recorded(tmp_path, deaf)
    with pytest.raises(AssertionError, match="power cut at moment"):
        sweep(disk, tmp_path / "after", federation_check)
