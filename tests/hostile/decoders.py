"""Everything that reads bytes from the network or from a disk, each as a function of bytes.

A reader returns what it made of its input, as a word or a message; what it may raise by its own
documentation is such an answer, and anything else is a finding.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from coordinator.config import CoordinatorConfig
from coordinator.store import Store
from edge_client.config import ClientConfig
from edge_client.data import Problems, open_source
from edge_client.local_state import FOLDER_NAME, LocalStates
from edge_client.optimizers import OptimizerState
from edge_client.progress import FILE_NAME as PROGRESS_NAME
from edge_client.progress import Checkpoint, SavedProgress
from edge_client.saved_session import STATE_NAME, SavedSession
from fedtide.blobs import BlobStore, blocks_count
from fedtide.bundle import open_bundle_dir, sha256_hex
from fedtide.config import load_config
from fedtide.dataset import load_dataset
from fedtide.errors import BundleError, ConfigError, DataError, StateError
from fedtide.generations import Generations
from fedtide.limits import BLOCK_BYTES
from fedtide.manifest import MANIFEST_NAME, parse_manifest
from fedtide.messages import (
    BlobRef,
    Chunk,
    Envelope,
    Malformed,
    Offer,
    Task,
    Welcome,
    decode,
    encode,
)
from fedtide.onnx_scan import scan_model
from fedtide.plan import Plan
from fedtide.safetensors import decode_safetensors, encode_safetensors
from fedtide.topics import Topics
from fedtide.vectors import decode_vector
from simulator.faults.fake_learning import fake_bundle
from tests.bundles import CACHE
from tests.contract.local_data import KINDS, examples
from tests.contract.local_data import MANIFEST as LOCAL_MANIFEST
from tests.federation import Federation, Peer
from tests.golden.test_golden import MESSAGES
from tests.hostile.decoder import Decoder
from tests.hostile.enrol_decoders import enrol, join_code
from tests.hostile.seal_decoders import identity, members, numbers, sealed
from tests.hostile.test_bundles import BOMBS, CRASHERS

_GOLDEN = tuple(encode(message, "m1") for message in MESSAGES.values())
_EXAMPLES = Path(__file__).parents[2] / "examples"
_LIVES = 300
"""Messages that one federation hears before another takes its place."""


def message(_folder: Path) -> Decoder:
    def read(payload: bytes) -> str:
        result = decode(payload)
        if isinstance(result, Malformed):
            assert 0 < len(result.reason) <= 500
            return result.reason
        assert decode(encode(result.body, result.id)) == result
        return type(result.body).__name__

    return Decoder(_GOLDEN, read, "msgpack")


def topic(_folder: Path) -> Decoder:
    topics = Topics("test")

    def read(raw: bytes) -> str:
        name = topics.device_of(raw.decode("utf-8", "replace"))
        assert name is None or (len(name) <= 64 and "/" not in name)
        return "none" if name is None else "device"

    return Decoder((topics.up("d").encode(), topics.presence("device-1").encode()), read)


def coordinator(folder: Path) -> Decoder:
    """A whole coordinator in the middle of a round; it answers, and never raises."""
    lives = _Lives(folder / "coordinator")

    def read(payload: bytes) -> str:
        federation, liar = lives.next()
        before = len(liar.heard)
        topics = federation.topics
        federation.broker.route(topics.presence("mallory"), payload, retain=False)
        liar.say_bytes(payload)
        federation.now_ms += 50
        federation.service.time_reached(federation.now_ms)
        federation.settle()
        return " ".join(type(body).__name__ for body in liar.heard[before:])

    liar = lives.next()[1]
    content = np.zeros(50_000, "<f4").tobytes()
    offer = encode(Offer(liar.update(content)), "m2")
    fitting = (encode(chunk, "m2") for chunk in liar.chunks(content))
    return Decoder((*_GOLDEN, offer, *fitting), read, "msgpack")


def device(folder: Path) -> Decoder:
    """A whole client in the middle of a round."""
    lives = _Lives(folder / "device")

    def read(payload: bytes) -> str:
        federation, _ = lives.next()
        topics, session = federation.topics, federation.devices["a"].session
        for place in (topics.down("a"), topics.beacon, topics.chunk("0" * 64, 0)):
            federation.broker.route(place, payload, retain=False)
        federation.settle()
        federation.now_ms += 50
        session.time_reached(federation.now_ms)
        federation.settle()
        assert session.next_deadline_at_ms() is not None
        said = decode(federation.broker.retained[topics.presence("a")])
        return str(said.body) if isinstance(said, Envelope) else "nothing"

    federation, _ = lives.next()
    assert federation.devices["a"].alive
    seeds = (*_GOLDEN, *lives.said_to_a)
    return Decoder(seeds, read, "msgpack")


class _Lives:
    """Federations, one after the other, each with a round open and a peer that may say anything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heard = _LIVES
        self.said_to_a: tuple[bytes, ...] = ()

    def next(self) -> tuple[Federation, Peer]:
        self._heard += 1
        if self._heard > _LIVES:
            self._heard = 0
            shutil.rmtree(self._folder, ignore_errors=True)
            federation = Federation(self._folder, devices_min=2, cohort_size=2, count=1000)
            watcher = Peer(federation, "a")
            federation.add("a")
            federation.devices["a"].runner.held = True
            federation.settle()
            liar = Peer(federation, "mallory")
            liar.hello()
            watcher.link.stop()  # it would not bear what is said to `a` from now on
            task, welcome = watcher.last(Task), watcher.last(Welcome)
            self.said_to_a = (encode(task, "m3"), encode(welcome, "m3"))
            self._now = federation, liar
        return self._now


def manifest(_folder: Path) -> Decoder:
    def read(raw: bytes) -> str:
        try:
            return parse_manifest(raw).name[:1] or "read"
        except BundleError as exc:
            return str(exc)

    return Decoder(tuple((b / MANIFEST_NAME).read_bytes() for b in _bundles()), read, "json")


def bundle(folder: Path) -> Decoder:
    """A folder with a manifest that may be anything, whose files are there."""
    target, contents = folder / "bundle", {}
    whole = fake_bundle(100, local=10)
    for path in (*whole.manifest.files, MANIFEST_NAME):
        contents[path] = whole.fetch(path)

    def read(raw: bytes) -> str:
        target.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            (target / path).write_bytes(content)
        (target / MANIFEST_NAME).write_bytes(raw)
        try:
            opened = open_bundle_dir(target)
            for path in opened.manifest.files:
                opened.read(path)
        except BundleError as exc:
            return str(exc)
        return "read"

    return Decoder((contents[MANIFEST_NAME],), read, "json")


def arriving_blob(folder: Path) -> Decoder:
    """What lies on the disk of a blob that is arriving: blocks, and their marks."""
    content = bytes(range(256)) * 200
    ref = BlobRef(sha256_hex(content), len(content))
    marks = b"".join(
        (zlib.crc32(content[at : at + BLOCK_BYTES]) + 1).to_bytes(8, "little")
        for at in range(0, len(content), BLOCK_BYTES)
    )

    def read(raw: bytes) -> str:
        store = BlobStore(folder)
        (folder / "partial" / ref.digest).write_bytes(raw)
        partial = store.open_partial(ref)
        missing = sum(count for _, count in partial.missing())
        assert missing + partial.arrived_blocks() == partial.blocks == blocks_count(len(content))
        if partial.complete:
            found = partial.content()
            assert found in (content, None)
            return "whole" if found else "damaged"
        return f"missing {'some' if partial.arrived_blocks() else 'all'}"

    return Decoder((content + marks, bytes(len(content)) + marks), read)


def chunks(folder: Path) -> Decoder:
    """Chunks in any order, each of which may lie."""
    content = bytes(range(256)) * 200
    ref = BlobRef(sha256_hex(content), len(content))
    parts = [(n, content[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES]) for n in range(4)]
    said = [
        encode(Chunk(ref.digest, ref.size_bytes, n, zlib.crc32(part), part), "c")
        for n, part in parts
    ]

    def read(raw: bytes) -> str:
        store = BlobStore(folder)
        partial = store.open_partial(ref)
        try:
            payloads = msgspec.msgpack.decode(raw, type=list[bytes])[:50]
        except (msgspec.DecodeError, RecursionError):
            return "no list"
        answers = set()
        for payload in payloads:
            envelope = decode(payload)
            if isinstance(envelope, Envelope) and isinstance(envelope.body, Chunk):
                answers.add(partial.accept(envelope.body) or "taken")
        assert not partial.complete or partial.content() in (content, None)
        store.discard(ref.digest)
        return " ".join(sorted(answers))

    return Decoder((msgspec.msgpack.encode(said),), read, "msgpack")


def update(_folder: Path) -> Decoder:
    def read(raw: bytes) -> str:
        answers = []
        for encoding, width in (("f32", 4), ("f16", 2)):
            try:
                vector = decode_vector(raw, encoding, len(raw) // width)  # type: ignore[arg-type]
                assert np.isfinite(vector).all()
                answers.append("read")
            except ValueError as exc:
                answers.append(str(exc))
        return " ".join(answers)

    values = np.linspace(-2, 2, 1000)
    return Decoder((values.astype("<f4").tobytes(), values.astype("<f2").tobytes()), read)


def initial_model(_folder: Path) -> Decoder:
    def read(raw: bytes) -> str:
        try:
            return "read" if len(decode_safetensors(raw)) else "empty"
        except ValueError as exc:
            return str(exc)

    return Decoder((encode_safetensors(np.linspace(-2, 2, 100).astype(np.float32)),), read)


def generations(folder: Path) -> Decoder:
    """One file of the two is damaged, then both."""
    folder.mkdir(parents=True, exist_ok=True)
    intact = Generations(folder / "x")
    intact.save(b"one")
    intact.save(b"two")
    files = folder / "x.0", folder / "x.1"
    seeds = tuple(file.read_bytes() for file in files)

    def read(raw: bytes) -> str:
        files[0].write_bytes(raw)
        files[1].write_bytes(seeds[1])
        assert Generations(folder / "x").load() in (b"one", b"two")
        files[1].write_bytes(raw)
        try:
            return "none" if Generations(folder / "x").load() is None else "read"
        except StateError as exc:
            return str(exc)

    return Decoder(seeds, read)


def session(folder: Path) -> Decoder:
    """The client's saved state, with a right checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = SavedSession(folder, "test", "a")
    empty = saved.load()
    task, offer = MESSAGES["task"], MESSAGES["offer"]
    assert isinstance(offer, Offer)
    full = msgspec.structs.replace(empty, task=task, outbox=(offer.update,))

    def read(raw: bytes) -> str:
        for number in (0, 1):
            (folder / f"{STATE_NAME}.{number}").unlink(missing_ok=True)
        Generations(folder / STATE_NAME).save(raw)
        try:
            SavedSession(folder, "test", "a").load()
        except StateError as exc:
            return str(exc)
        return "read"

    return Decoder((msgspec.json.encode(empty), msgspec.json.encode(full)), read, "json")


def local_state(folder: Path) -> Decoder:
    """What a device keeps from round to round, with a right checksum."""
    model = fake_bundle(100, local=10).manifest
    golden = MESSAGES["task"]
    assert isinstance(golden, Task)
    plan = Plan(momentum=0.5, optimizer_state="kept")
    task = msgspec.structs.replace(golden, plan=plan, round_id=1)
    later = msgspec.structs.replace(task, round_id=2)
    states = LocalStates(folder)
    path = folder / FOLDER_NAME / task.bundle.digest / "0"

    def read(raw: bytes) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hashlib.sha256(raw).digest() + raw)
        values, optimizer = states.load(later, model)
        assert values is None or len(values) == 10
        path.write_bytes(raw)
        states.load(later, model)
        return f"{values is not None} {optimizer is not None}"

    count = model.trained.stop - model.trained.start
    state = OptimizerState(3, (np.ones(count, np.float32),))
    states.save(task, np.ones(10, np.float32), state)
    return Decoder((path.read_bytes()[32:],), read)


def progress(folder: Path) -> Decoder:
    """How far a training has come, with a right checksum."""
    saved = SavedProgress(folder)
    vectors = tuple(np.ones(7, np.float32) for _ in range(2))
    checkpoint = Checkpoint(2, vectors[0], OptimizerState(3, vectors), (0.5, 0.4), 9, None)
    path = folder / PROGRESS_NAME

    def read(raw: bytes) -> str:
        path.write_bytes(raw)
        assert saved.load(lambda: b"basis") is None
        path.write_bytes(hashlib.sha256(raw).digest() + raw)
        found = saved.load(lambda: b"basis")
        assert path.exists() == (found is not None)
        return "none" if found is None else f"{found.epochs} {len(found.parameters)}"

    saved.save(b"basis", checkpoint)
    return Decoder((path.read_bytes()[32:],), read)


def graph(_folder: Path) -> Decoder:
    """The scan of an ONNX file."""

    def read(raw: bytes) -> str:
        try:
            scan_model(raw)
        except BundleError as exc:
            return str(exc)
        return "passed"

    graphs = (path.read_bytes() for b in _bundles() for path in sorted(b.rglob("*.onnx")))
    return Decoder((*graphs, *BOMBS.values(), *CRASHERS.values()), read)


def scanned_graph(folder: Path) -> Decoder:
    """onnxruntime, on what the scan lets through."""
    scan = graph(folder)
    if importlib.util.find_spec("onnxruntime") is None:
        return scan
    from fedtide.runtime import load_session

    def read(raw: bytes) -> str:
        try:
            load_session(raw)
        except BundleError as exc:
            return str(exc)
        return "loaded"

    return Decoder(tuple(raw for raw in scan.seeds if scan.read(raw) == "passed"), read)


def data(folder: Path) -> Decoder:
    """A device's local data."""
    model = fake_bundle(100).manifest
    path = folder / "data.npz"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, x=np.ones((8, 2), np.float32), y=np.arange(8) % 2)
        seeds.append(file.getvalue())

    def read(raw: bytes) -> str:
        path.write_bytes(raw)
        try:
            load_dataset(path, model)
        except DataError as exc:
            return str(exc)
        return "read"

    return Decoder(tuple(seeds), read)


def array(folder: Path) -> Decoder:
    """An array of a device's local data, in an archive that is in order."""
    model = fake_bundle(100).manifest
    path = folder / "data.npz"
    folder.mkdir(parents=True, exist_ok=True)
    labels = io.BytesIO()
    np.save(labels, np.arange(8) % 2)

    def read(raw: bytes) -> str:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", raw)
            archive.writestr("y.npy", labels.getvalue())
        try:
            load_dataset(path, model)
        except DataError as exc:
            return str(exc)
        return "read"

    seeds = []
    for dtype in (np.float32, np.int64):
        file = io.BytesIO()
        np.save(file, np.ones((8, 2), dtype))
        seeds.append(file.getvalue())
    huge = seeds[0].replace(b"(8, 2), }       ", b"(80000000, 2), }")
    assert len(huge) == len(seeds[0])
    assert huge != seeds[0]
    return Decoder((*seeds, huge), read)


def _local_data(folder: Path, name: str, file: str) -> Decoder:
    """One file of local data of this kind; the others are in order."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = KINDS[name](folder)
    kind.write(*examples(6))
    path, source = folder / file, open_source(kind.config())

    def read(raw: bytes) -> str:
        path.write_bytes(raw)
        os.utime(path, (10**9, 10**9))  # of what is young, less is expected
        try:
            source.describe(Problems(5))
            source.load(LOCAL_MANIFEST, Problems())
        except DataError as exc:
            return str(exc)
        return "read"

    return Decoder((path.read_bytes(),), read)


def csv_file(folder: Path) -> Decoder:
    """A device's local data as CSV."""
    return _local_data(folder, "csv", "d.csv")


def npy_file(folder: Path) -> Decoder:
    """A device's inputs as .npy."""
    return _local_data(folder, "npy", "x.npy")


def sqlite_file(folder: Path) -> Decoder:
    """A device's local data as an SQLite database."""
    return _local_data(folder, "sqlite", "d.db")


def image_file(folder: Path) -> Decoder:
    """One of a device's images."""
    return _local_data(folder, "images", "images/ant/0000.png")


def configuration(folder: Path) -> Decoder:
    """Both sides' TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    names = ("client.toml", "coordinator.toml")

    def read(raw: bytes) -> str:
        path.write_bytes(raw)
        answers = []
        for kind in (ClientConfig, CoordinatorConfig):
            try:
                load_config(path, kind)
                answers.append("read")
            except ConfigError as exc:
                answers.append(str(exc))
        return " ".join(answers)

    return Decoder(tuple((_EXAMPLES / name).read_bytes() for name in names), read)


_COLUMNS = (
    "facts.value", "events.event_json", "rounds.plan_json", "rounds.encoding",
    "updates.update_json", "updates.verdict", "models.digest", "models.held_out_json",
)  # fmt: skip


def store_rows(folder: Path) -> Decoder:
    """The coordinator's database, in order as a file, with rows that may hold anything."""
    template = _finished_store(folder)

    def read(raw: bytes) -> str:
        try:
            rows = msgspec.json.decode(raw, type=dict[str, str])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "no rows"
        target = _copied(template, folder / "rows")
        with sqlite3.connect(target / "coordinator.db") as database:
            for column in _COLUMNS:
                table, name = column.split(".")
                if column in rows:
                    where = "WHERE name = 'round_state'" if table == "facts" else ""
                    change = f"UPDATE {table} SET {name} = ? {where}"
                    database.execute(change, (rows[column],))
        database.close()
        return _read_store(target)

    with sqlite3.connect(template / "coordinator.db") as database:
        rows = {}
        for column in _COLUMNS:
            table, name = column.split(".")
            where = "WHERE name = 'round_state'" if table == "facts" else f"WHERE {name} NOT NULL"
            rows[column] = database.execute(f"SELECT {name} FROM {table} {where}").fetchone()[0]
    database.close()
    seeds = [rows, *({column: value} for column, value in rows.items())]
    return Decoder(tuple(msgspec.json.encode(seed) for seed in seeds), read, "json")


def store_file(folder: Path) -> Decoder:
    """The coordinator's database as bytes on a failing disk."""
    template = _finished_store(folder)

    def read(raw: bytes) -> str:
        target = folder / "file"
        target.mkdir(parents=True, exist_ok=True)
        for path in target.glob("coordinator.db*"):
            path.unlink()
        (target / "coordinator.db").write_bytes(raw)
        return _read_store(target)

    return Decoder(((template / "coordinator.db").read_bytes(),), read)


def _finished_store(folder: Path) -> Path:
    federation = Federation(folder / "federation", devices_min=2, cohort_size=2, count=1)
    federation.add("a", "b")
    federation.run(federation.finished)
    federation.store.close()
    return folder / "federation" / "coordinator"


def _copied(template: Path, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for path in target.glob("coordinator.db*"):
        path.unlink()
    shutil.copy(template / "coordinator.db", target)
    return target


def _read_store(folder: Path) -> str:
    """What a coordinator that starts, and whoever looks at its models, reads."""
    try:
        store = Store(folder)
        try:
            store.fact("bundle")
            store.load_state()
            store.events()
            store.terms(1)
            store.updates(1)
            store.models()
            store.model(1)
            store.receipt("x", "a")
            store.counts()
        finally:
            store.close()
    except StateError as exc:
        return str(exc)
    return "read"


def _bundles() -> list[Path]:
    """One exported bundle of each model that is in the cache."""
    newest = {}
    for path in sorted(CACHE.glob("*/bundle"), key=lambda path: path.stat().st_mtime):
        if (path / MANIFEST_NAME).is_file():
            newest[path.parent.name.rsplit("-", maxsplit=1)[0]] = path
    return [newest[name] for name in sorted(newest)]


DECODERS: dict[str, Callable[[Path], Decoder]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        message, topic, coordinator, device, manifest, bundle, arriving_blob, chunks, update,
        initial_model, generations, session, local_state, progress, graph, scanned_graph, data,
        array, csv_file, npy_file, sqlite_file, image_file, configuration, store_rows, store_file,
        sealed, members, identity, numbers, join_code, enrol,
    )
}  # fmt: skip
"""Each gets a folder of its own to work in."""
