"""Files, blobs and the coordinator's store, on disks that are full, damaged or foreign."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import sqlite3
import stat
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.aggregate_job import Part
from coordinator.records import Terms
from coordinator.round_machine import DeviceArrived, Member, RoundState, UpdateAccepted
from coordinator.schema import _SINCE_3, _SINCE_4, _TABLES, SCHEMA_VERSION
from coordinator.store import Store
from edge_client.holdings import is_intact
from edge_client.vector_file import read_vectors, write_vectors
from fedtide.blobs import BlobStore
from fedtide.bundle import sha256_hex
from fedtide.errors import StateError
from fedtide.files import locked, read_checked, write_atomically, write_public, write_secret
from fedtide.generations import Generations
from fedtide.limits import BLOCK_BYTES
from fedtide.measures import Measure, Metrics
from fedtide.messages import BlobRef, Chunk, Receipt, Update
from fedtide.plan import Plan

# ---- files ----


def failing(number: int) -> object:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(StateError, match="cannot use the folder"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(StateError) as error:
        write_atomically(tmp_path / "x", b"new")
    assert "No space left on device\n\nhint: free space on this disk" in str(error.value)


def test_a_write_that_the_kernel_refuses(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(StateError, match="File too large"):
            write_atomically(path, b"new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_what_lies_where_a_file_is_written_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / ".x.new").symlink_to(precious)
    write_atomically(tmp_path / "x", b"new")
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "x").is_symlink()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_nobody_else_may_write_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    left = tmp_path / ".secret.new"
    left.write_bytes(b"")
    left.chmod(0o666)
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "usual", b"x")
        write_secret(tmp_path / "secret", b"x")
        write_public(tmp_path / "public", b"x")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"usual": 0o644 & ~mask, "secret": 0o600, "public": 0o644}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_secret_of_another_users_is_never_open_to_all(tmp_path: Path) -> None:
    os.chown(tmp_path, 4321, 1234)
    write_secret(tmp_path / "x", b"x", owned_like=tmp_path)
    made = (tmp_path / "x").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (4321, 1234, 0o600)


def test_a_file_that_may_not_be_read_is_no_failure_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"content")
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    with pytest.raises(StateError, match="cannot use the folder") as error:
        read_checked(tmp_path / "x")
    assert "Permission denied\n\nhint: let this user read and write" in str(error.value)


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        write_atomically(tmp_path / "absent" / "x", b"new")


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "state", "client"),
        pytest.raises(StateError, match="in use by another client"),
        locked(tmp_path / "state", "client"),
    ):
        raise AssertionError("both hold it")
    with locked(tmp_path / "state", "client"):
        assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_generations_survive_a_torn_write(tmp_path: Path) -> None:
    state = Generations(tmp_path / "s")
    assert state.load() is None
    for number in range(4):
        state.save(b"%d" % number)
    assert Generations(tmp_path / "s").load() == b"3"
    newest = tmp_path / "s.0"  # the fourth save
    for length in range(len(newest.read_bytes())):
        newest.write_bytes(newest.read_bytes()[:-1])
        assert Generations(tmp_path / "s").load() == b"2", length
    for path in tmp_path.iterdir():
        path.write_bytes(b"rot")
    with pytest.raises(StateError, match="both generations"):
        Generations(tmp_path / "s").load()


# ---- blobs ----


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def test_what_a_disk_cannot_read_is_as_good_as_damaged(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector of an SD card must not keep a device from starting, again and again."""
    generations = Generations(tmp_path / "session")
    for content in (b"older", b"newer"):
        generations.save(content)
    vectors = tmp_path / "vectors"
    write_vectors(vectors, b"header", [np.ones(3, np.float32)])
    ref = blobs.put(b"model")
    bad = {tmp_path / "session.0", vectors, blobs.path(ref.digest)}
    opened = os.open

    def open_or_fail(path: Path, flags: int, *more: int) -> int:
        if path in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", open_or_fail)
    assert Generations(tmp_path / "session").load() == b"older"
    assert read_vectors(vectors) is None
    assert not is_intact(blobs, ref)
    assert not blobs.has(ref.digest), "to be fetched again"


def test_a_block_that_cannot_be_read_is_missing(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(2 * BLOCK_BYTES)
    ref = BlobRef(sha256_hex(content), len(content))
    chunk = Chunk(ref.digest, ref.size_bytes, 0, zlib.crc32(content), content)
    assert blobs.open_partial(ref).accept(chunk) is None

    class Bad(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == BLOCK_BYTES:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda path, _mode: Bad(io.FileIO(path)))
    assert blobs.open_partial(ref).missing() == [(1, 1)]


def test_put_and_read(blobs: BlobStore) -> None:
    ref = blobs.put(b"tide")
    assert ref == BlobRef(sha256_hex(b"tide"), 4) == blobs.put(b"tide")
    assert blobs.read(ref.digest) == b"tide"
    assert blobs.digests() == [ref.digest]


def test_a_damaged_blob_is_removed_not_returned(blobs: BlobStore) -> None:
    ref = blobs.put(b"tide")
    blobs.path(ref.digest).write_bytes(b"tidf")
    with pytest.raises(FileNotFoundError, match="damaged"):
        blobs.read(ref.digest)
    assert not blobs.has(ref.digest)


def test_keep_only_forgets_the_rest_finished_or_arriving(blobs: BlobStore) -> None:
    kept, gone = blobs.put(b"kept"), blobs.put(b"gone")
    arriving = [BlobRef(f"{number:064x}", 10) for number in range(2)]
    for ref in arriving:
        blobs.open_partial(ref)
    blobs.keep_only({kept.digest, arriving[0].digest})
    assert blobs.digests() == [kept.digest]
    partial = blobs.path(gone.digest).parents[1] / "partial"
    assert [path.name for path in partial.iterdir()] == [arriving[0].digest]
    blobs.discard_arriving()
    assert list(partial.iterdir()) == []


def test_a_partial_of_another_size_starts_anew(blobs: BlobStore) -> None:
    """One digest, two claims about its size: the right one must get through."""
    content = b"x" * 20
    wrong = blobs.open_partial(BlobRef(sha256_hex(content), 40_000))
    assert wrong.blocks == 3
    right = blobs.open_partial(BlobRef(sha256_hex(content), 20))
    assert right.missing() == [(0, 1)]


# ---- the store ----

UPDATE = Update(
    "u1", "run", 1, "train", "aa" * 32, 5, BlobRef("bb" * 32, 8), "f32", 1, 2, (0.5,), None
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


def test_all_or_nothing(store: Store) -> None:
    def crash() -> None:
        with store.transaction():
            store.set_fact("a", "1")
            store.save_event(DeviceArrived("d"), RoundState(round_id=3), 5)
            store.count("c")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert (store.fact("a"), store.events(), store.counts()) == (None, [], {"c": 1})
    assert store.load_state() == RoundState()
    with store.transaction():
        store.save_event(DeviceArrived("d"), RoundState(round_id=3), 5)
    assert store.events() == [(5, DeviceArrived("d"))]
    assert store.load_state() == RoundState(round_id=3)


def test_a_commit_survives_reopening(store: Store, tmp_path: Path) -> None:
    with store.transaction():
        store.save_verdict(UPDATE, "d", Receipt("u1", "accepted"), 7)
    store.close()
    again = Store(tmp_path / "state")
    assert again.updates(1) == [UPDATE]
    assert again.receipt("u1", "d") == Receipt("u1", "accepted")
    assert again.receipt("u1", "another") is None
    again.close()


def test_the_first_verdict_stands(store: Store) -> None:
    store.save_verdict(UPDATE, "d", Receipt("u1", "discarded", "late"), 7)
    store.save_verdict(UPDATE, "d", Receipt("u1", "accepted"), 8)
    assert store.receipt("u1", "d") == Receipt("u1", "discarded", "late")
    assert store.updates(1) == []


def test_an_offer_costs_no_look_at_all_updates(store: Store) -> None:
    said: list[str] = []
    store._db.set_trace_callback(said.append)
    store.receipt("u1", "d")
    store.answered(1, "d")
    store.replayed(UPDATE, "d")
    store._db.set_trace_callback(None)
    for query in said:
        plan = " ".join(row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "SCAN updates" not in plan, plan


def test_updates_come_in_order_of_device(store: Store) -> None:
    for name in ("c", "a", "b"):
        update = msgspec.structs.replace(UPDATE, examples=ord(name))
        store.save_verdict(update, name, Receipt("u1", "accepted"), 7)
    assert [chr(update.examples) for update in store.updates(1)] == ["a", "b", "c"]


def test_metrics_are_means_of_sums(store: Store) -> None:
    store.add_model(0, BlobRef("aa" * 32, 4), 0, 1)
    own = {"loss": Measure(2.0, 4.0), "accuracy": Measure(3.0, 4.0), "f1": Measure(1.0, 8.0)}
    store.set_metrics(0, Metrics(4, own), held_out=False)
    store.set_metrics(0, Metrics(0), held_out=True)
    model = store.model(0)
    assert model is not None
    assert model.metrics == Metrics(4, own)
    assert (model.judged.loss, model.judged.accuracy, model.held_out) == (0.5, 0.75, None)
    assert model.judged.mean("f1") == 0.125


def test_a_state_with_all_its_keys_and_one_with_few_are_the_same(store: Store) -> None:
    state = RoundState("collecting", 2, cohort=(Member("a"), Member("b", "accepted", "u", 2, 1)))
    with store.transaction():
        store.save_state(state)
    short = store.fact("round_state")
    assert store.load_state() == state
    full = msgspec.structs.asdict(state)
    full["cohort"] = [msgspec.structs.asdict(member) for member in state.cohort]
    with store.transaction():  # as earlier versions wrote it
        store.set_fact("round_state", json.dumps(full))
    assert store.load_state() == state
    assert short is not None
    assert '{"device_id":"a"}' in short


def test_counters_count(store: Store) -> None:
    for _ in range(3):
        store.count("b")
    store.count("a")
    assert list(store.counts().items()) == [("a", 1), ("b", 3)]


def test_a_foreign_schema_is_refused(store: Store, tmp_path: Path) -> None:
    store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    store.close()
    for read_only in (False, True):
        with pytest.raises(StateError, match=f"schema {SCHEMA_VERSION + 1}, expected"):
            Store(tmp_path / "state", read_only=read_only)


def test_a_store_of_version_2_is_brought_up_to_date(tmp_path: Path) -> None:
    """A round that is done, one that is open: as the version before this one wrote them."""
    folder = tmp_path / "old"
    folder.mkdir()
    database = sqlite3.connect(folder / "coordinator.db")
    database.executescript(f"{_TABLES} PRAGMA user_version = 2;")
    state = {
        "phase": "collecting",
        "round_id": 2,
        "model_version": 1,
        "wanted": 2,
        "quorum": 1,
        "cohort": [{"device_id": "a", "answer": "none", "update_id": ""}],
        "deadline_at_ms": 99,
    }
    database.execute("INSERT INTO facts VALUES ('round_state', ?)", (json.dumps(state),))
    event = '{"type": "UpdateAccepted", "round_id": 1, "device_id": "a", "update_id": "u1"}'
    database.execute("INSERT INTO events VALUES (1, 5, ?)", (event,))
    plan = msgspec.json.encode(Plan()).decode()
    for round_id, outcome in ((1, "done"), (2, "open")):
        row = (round_id, "train", 1, None, outcome, "", '["a"]', round_id - 1, plan, "f32")
        database.execute(f"INSERT INTO rounds VALUES ({', '.join('?' * 10)})", row)
    first = ("u1", 1, "a", "accepted", "", 5, 10, 7, 4, msgspec.json.encode(UPDATE).decode())
    database.execute(f"INSERT INTO updates VALUES ({', '.join('?' * 10)})", first)
    database.commit()
    database.close()

    with pytest.raises(StateError, match="start the coordinator once"):
        Store(folder, read_only=True)
    for _ in range(2):  # it is done once
        store = Store(folder)
        assert store.parts(1) == [Part(UPDATE, 0, None)]
        assert store.load_state().cohort == (Member("a", "none", "", 2, 1),)
        assert store.invited(2, "a")
        assert store.answered(1, "a")
        assert store.terms(1).norm_factor is None  # nothing was clipped then
        assert store.terms(1).weights == "examples"
        assert store.events() == [(5, UpdateAccepted(1, "a", "u1"))]
        store.close()


def test_a_store_of_version_3_is_brought_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    database = sqlite3.connect(folder / "coordinator.db")
    database.executescript(f"{_TABLES} {_SINCE_3} PRAGMA user_version = 3;")
    plan = (
        '{"epochs":2,"batch_size":10,"examples_at_once":128,"learning_rate":0.1,"optimizer":"sgd",'
        '"momentum":0.0,"nesterov":false,"betas":[0.9,0.999],"epsilon":1e-08,"weight_decay":0.0,'
        '"proximal_mu":0.0,"clip_norm":null,"optimizer_state":"fresh","seed":1,"steps_max":null}'
    )
    row = (1, "train", 1, None, "done", "", '["a"]', 0, plan, "f32", 0.5, 10.0)
    database.execute(f"INSERT INTO rounds VALUES ({', '.join('?' * 12)})", row)
    database.commit()
    database.close()
    with pytest.raises(StateError, match="start the coordinator once"):
        Store(folder, read_only=True)
    for _ in range(2):
        store = Store(folder)
        made = Terms(Plan(epochs=2, seed=1), "f32", "train", 0, 0.5, 10.0, "examples")
        assert store.terms(1) == made
        store.close()


def test_a_store_of_version_4_gets_marks(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    database = sqlite3.connect(folder / "coordinator.db")
    database.executescript(f"{_TABLES} {_SINCE_3} {_SINCE_4} PRAGMA user_version = 4;")
    database.execute("INSERT INTO facts VALUES ('run_id', 'r1')")
    database.commit()
    database.close()
    with pytest.raises(StateError, match="start the coordinator once"):
        Store(folder, read_only=True)
    for newest in (None, 7):
        store = Store(folder)
        assert store.fact("run_id") == "r1"
        assert store.marks.advance("aa", 7) == newest
        store.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "coordinator.db").write_bytes(b"no database" * 100)
    with pytest.raises(StateError, match="cannot be used"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("client.toml", "a device's"),
        ("identity/joined_by", "a device's"),
        ("session.1", "a device's"),
        ("registry.db", "the registrar's"),
    ],
)
def test_no_federation_begins_in_the_folder_of_another_part(
    tmp_path: Path, name: str, whose: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("ab" * 32)).touch()  # its models are no reason to remove the folder
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        StateError, match=rf"is {whose}: it holds '{name}'\n\nhint: .*state_dir of its own"
    ):
        Store(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_models_without_their_database_are_not_begun_anew(store: Store, tmp_path: Path) -> None:
    """A coordinator that was given half of its folder must not publish the initial model again."""
    store.blobs.put(b"a model")
    store.close()
    for path in store.folder.glob("coordinator.db*"):
        path.unlink()
    with pytest.raises(StateError, match="is gone"):
        Store(store.folder)


def test_reading_only(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no coordinator state"):
        Store(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    reader = Store(tmp_path / "state", read_only=True)
    assert reader.models() == []
    with pytest.raises(StateError, match="readonly"), reader.transaction():
        reader.set_fact("a", "1")
    reader.close()


@pytest.mark.parametrize("tables", [False, True], ids=["no bytes", "no tables"])
@pytest.mark.parametrize("read_only", [False, True])
def test_nor_are_those_beside_an_empty_database(
    store: Store, tmp_path: Path, *, tables: bool, read_only: bool
) -> None:
    store.blobs.put(b"a model")
    store.close()
    for path in store.folder.glob("coordinator.db*"):
        path.unlink()
    path = store.folder / "coordinator.db"
    path.touch()
    if tables:
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = WAL")
    before = path.read_bytes()
    with pytest.raises(StateError, match=r"is empty|has no tables"):
        Store(store.folder, read_only=read_only)
    assert path.read_bytes() == before
