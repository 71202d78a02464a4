"""The coordinator's memory: SQLite for what happened, a blob store for models and updates.

One transaction holds an event, the machine's new state and every record that follows from both
(`coordinator.service`). WAL with synchronous=FULL: what was committed survives a power cut. Blobs
are fsynced before the transaction that names them.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar, cast

import msgspec

from coordinator.round_machine import AbandonRound, Event, RoundState
from fedtide.blobs import BlobStore
from fedtide.errors import StateError
from fedtide.failpoints import reach
from fedtide.files import make_folder
from fedtide.measures import Metrics
from fedtide.messages import BlobRef, Encoding, Receipt, Update
from fedtide.plan import Plan

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, event_json TEXT NOT NULL);
CREATE TABLE rounds (
    round_id INTEGER PRIMARY KEY, kind TEXT NOT NULL, opened_at_ms INTEGER NOT NULL,
    closed_at_ms INTEGER, outcome TEXT NOT NULL DEFAULT 'open', reason TEXT NOT NULL DEFAULT '',
    cohort_json TEXT NOT NULL, base_version INTEGER NOT NULL,
    plan_json TEXT NOT NULL, encoding TEXT NOT NULL);
CREATE TABLE updates (
    update_id TEXT NOT NULL, round_id INTEGER NOT NULL, device_id TEXT NOT NULL,
    verdict TEXT NOT NULL, reason TEXT NOT NULL, at_ms INTEGER NOT NULL,
    examples INTEGER NOT NULL, training_ms INTEGER NOT NULL, payload_bytes INTEGER NOT NULL,
    update_json TEXT NOT NULL, PRIMARY KEY (round_id, device_id));
CREATE TABLE models (
    version INTEGER PRIMARY KEY, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    round_id INTEGER NOT NULL, made_at_ms INTEGER NOT NULL,
    metrics_json TEXT, held_out_json TEXT);
CREATE TABLE devices (
    device_id TEXT PRIMARY KEY, heard_at_ms INTEGER NOT NULL, hello_json TEXT NOT NULL);
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class Terms(NamedTuple):
    """What a round asks of its cohort."""

    plan: Plan
    encoding: Encoding


class Model(NamedTuple):
    """One global model version."""

    version: int
    ref: BlobRef
    round_id: int
    made_at_ms: int
    metrics: Metrics | None
    """On the coordinator's test set."""
    held_out: Metrics | None
    """On the devices' held-out data."""

    @property
    def judged(self) -> Metrics:
        """On the coordinator's test set if it has one, else on the devices' held-out data."""
        return self.metrics or self.held_out or Metrics(0)


P = ParamSpec("P")
R = TypeVar("R")


def _reading(method: Callable[Concatenate[Store, P], R]) -> Callable[Concatenate[Store, P], R]:
    """What a failing disk made of a row, or of the file, is told as such: no traceback."""

    @wraps(method)
    def guarded(self: Store, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        # A TypeError: a row or a value is not there.
        except (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError, TypeError) as exc:
            raise StateError(
                f"the coordinator's state in {str(self.folder)!r} cannot be read: {exc}",
                hint=_hint(exc),
            ) from exc

    return cast(Callable[Concatenate["Store", P], R], guarded)


class Store:
    """See the module. Used by one thread. Whatever reads raises a StateError for a damaged row."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        path = folder / "coordinator.db"
        if read_only and not path.exists():
            raise StateError(
                f"no coordinator state in {str(folder)!r}",
                hint="give the state_dir of a coordinator.toml",
            )
        with _database_errors(folder):
            if not read_only:
                make_folder(folder)
            uri = f"{path.resolve().as_uri()}{'?mode=ro' if read_only else ''}"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
            try:
                self._prepare(folder, read_only=read_only)
            except BaseException:
                self._db.close()
                raise
        self.blobs = BlobStore(folder, read_only=read_only)
        self._counts: Counter[str] = Counter()

    def _prepare(self, folder: Path, *, read_only: bool) -> None:
        self._db.execute("PRAGMA busy_timeout = 5000")
        if not read_only:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not read_only:
            self._db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise StateError(
                f"the state in {str(folder)!r} has schema {version}, expected {SCHEMA_VERSION}",
                hint="use the fedtide version that wrote it",
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing.

        Raises:
            StateError: the disk is full or failing; nothing of the transaction happened.
        """
        with _database_errors(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._write_counts()
                reach("disk: commit")
                self._db.execute("COMMIT")
                self._counts.clear()
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the database."""
        if self._counts:
            with self.transaction():
                pass
        self._db.close()

    @_reading
    def fact(self, name: str) -> str | None:
        """A named value, such as the run's id."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        """Set a named value."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @_reading
    def load_state(self) -> RoundState:
        """The machine's state as of the last commit."""
        raw = self.fact("round_state")
        return RoundState() if raw is None else msgspec.json.decode(raw, type=RoundState)

    def save_event(self, event: Event, state: RoundState, at_ms: int) -> None:
        """Append to the log, and replace the state."""
        self._db.execute(
            "INSERT INTO events (at_ms, event_json) VALUES (?, ?)",
            (at_ms, msgspec.json.encode(event).decode()),
        )
        self.set_fact("round_state", msgspec.json.encode(state).decode())

    @_reading
    def events(self) -> list[tuple[int, Event]]:
        """The whole log: (at_ms, event), oldest first."""
        rows = self._db.execute("SELECT at_ms, event_json FROM events ORDER BY sequence")
        return [(at_ms, msgspec.json.decode(raw, type=Event)) for at_ms, raw in rows]

    def open_round(self, state: RoundState, terms: Terms, at_ms: int) -> None:
        """Record a round that has just opened, and what was asked of its cohort."""
        cohort = msgspec.json.encode([member.device_id for member in state.cohort]).decode()
        plan = msgspec.json.encode(terms.plan).decode()
        self._db.execute(
            "INSERT INTO rounds (round_id, kind, opened_at_ms, cohort_json, base_version,"
            " plan_json, encoding) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                state.round_id,
                state.kind,
                at_ms,
                cohort,
                state.model_version,
                plan,
                terms.encoding,
            ),
        )

    @_reading
    def terms(self, round_id: int) -> Terms:
        """What was asked of a round's cohort, whatever the configuration says by now."""
        plan, encoding = self._db.execute(
            "SELECT plan_json, encoding FROM rounds WHERE round_id = ?", (round_id,)
        ).fetchone()
        return Terms(msgspec.json.decode(plan, type=Plan), encoding)

    def close_round(self, round_id: int, at_ms: int, abandoned: AbandonRound | None) -> None:
        """Record how a round ended."""
        outcome, reason = ("done", "") if abandoned is None else ("abandoned", abandoned.reason)
        self._db.execute(
            "UPDATE rounds SET closed_at_ms = ?, outcome = ?, reason = ? WHERE round_id = ?",
            (at_ms, outcome, reason, round_id),
        )

    def save_verdict(self, update: Update, device_id: str, receipt: Receipt, at_ms: int) -> None:
        """Record an update and its verdict; the first one of a device in a round stands."""
        self._db.execute(
            "INSERT OR IGNORE INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                update.update_id,
                update.round_id,
                device_id,
                receipt.verdict,
                receipt.reason,
                at_ms,
                update.examples,
                update.training_ms,
                0 if update.blob is None else update.blob.size_bytes,
                msgspec.json.encode(update).decode(),
            ),
        )

    @_reading
    def receipt(self, update_id: str, device_id: str) -> Receipt | None:
        """The verdict on an update of this device, if there is one."""
        row = self._db.execute(
            "SELECT verdict, reason FROM updates WHERE update_id = ? AND device_id = ?",
            (update_id, device_id),
        ).fetchone()
        return None if row is None else Receipt(update_id, row[0], row[1])

    @_reading
    def updates(self, round_id: int) -> list[Update]:
        """Accepted updates of a round, in order of device id: the order of aggregation."""
        rows = self._db.execute(
            "SELECT update_json FROM updates WHERE round_id = ? AND verdict = 'accepted'"
            " ORDER BY device_id",
            (round_id,),
        )
        return [msgspec.json.decode(raw, type=Update) for (raw,) in rows]

    def add_model(self, version: int, ref: BlobRef, round_id: int, at_ms: int) -> None:
        """Record a new global model, whose blob is already on disk."""
        self._db.execute(
            "INSERT INTO models (version, digest, size_bytes, round_id, made_at_ms)"
            " VALUES (?, ?, ?, ?, ?)",
            (version, ref.digest, ref.size_bytes, round_id, at_ms),
        )

    def set_metrics(self, version: int, metrics: Metrics, *, held_out: bool) -> None:
        """Record how a model did: on the coordinator's test set, or on held-out data of devices."""
        if metrics.examples == 0:
            return
        change = (
            "UPDATE models SET held_out_json = ? WHERE version = ?"
            if held_out
            else "UPDATE models SET metrics_json = ? WHERE version = ?"
        )
        self._db.execute(change, (msgspec.json.encode(metrics).decode(), version))

    @_reading
    def model(self, version: int) -> Model | None:
        """One model version."""
        row = self._db.execute("SELECT * FROM models WHERE version = ?", (version,)).fetchone()
        return None if row is None else _model(row)

    @_reading
    def models(self) -> list[Model]:
        """All model versions, oldest first."""
        return [_model(row) for row in self._db.execute("SELECT * FROM models ORDER BY version")]

    def heard(self, device_id: str, hello_json: str, at_ms: int) -> None:
        """Record a device's hello."""
        self._db.execute(
            "INSERT OR REPLACE INTO devices VALUES (?, ?, ?)", (device_id, at_ms, hello_json)
        )

    def count(self, name: str) -> None:
        """Add one to a named counter; written with the next transaction, or at `close`."""
        self._counts[name] += 1

    def _write_counts(self) -> None:
        self._db.executemany(
            "INSERT INTO counts VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            list(self._counts.items()),
        )

    @_reading
    def counts(self) -> dict[str, int]:
        """All counters, sorted by name."""
        written = Counter(dict(self._db.execute("SELECT name, value FROM counts")))
        return dict(sorted((written + self._counts).items()))


_decode_metrics = msgspec.json.Decoder(Metrics).decode


def _model(row: tuple[object, ...]) -> Model:
    version, digest, size_bytes, round_id, made_at_ms, *jsons = row
    measured = (None if raw is None else _decode_metrics(str(raw)) for raw in jsons)
    ref = BlobRef(digest, size_bytes)  # type: ignore[arg-type]
    return Model(version, ref, round_id, made_at_ms, *measured)  # type: ignore[arg-type]


def _hint(exc: Exception) -> str:
    if not isinstance(exc, sqlite3.OperationalError | OSError):
        return "the database is damaged: restore the state folder from a backup"
    return "free space or repair the disk, then start again: the last commit is intact"


@contextmanager
def _database_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as exc:
        raise StateError(
            f"the coordinator's state in {str(folder)!r} cannot be used: {exc}",
            hint=_hint(exc),
        ) from exc
