"""The coordinator's database: opened, committed, and damage told as what it is.

WAL with synchronous=FULL: what was committed survives a power cut.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

import msgspec

from coordinator.earlier import keep_earlier
from coordinator.marks import Marks
from coordinator.schema import EARLIER, SCHEMA_VERSION, prepare
from fedtide.errors import StateError
from fedtide.failpoints import reach
from fedtide.files import make_folder, require_database

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D", bound="Database")
_ANOTHERS = {
    "client.toml": "a device's",
    "identity/joined_by": "a device's",
    "session.0": "a device's",
    "session.1": "a device's",
    "registry.db": "the registrar's",
}
_log = logging.getLogger(__name__)


def reading(method: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """What a failing disk made of a row, or of the file, is told as such: no traceback."""

    @wraps(method)
    def guarded(self: D, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        # A TypeError: a row or a value is not there.
        except (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError, TypeError) as exc:
            raise StateError(
                f"the coordinator's state in {str(self.folder)!r} cannot be read: {exc}",
                hint=_hint(exc),
            ) from exc

    return cast(Callable[Concatenate[D, P], R], guarded)


def require_own(folder: Path) -> None:
    """Make sure that no new federation begins beside what another part of fedtide keeps.

    Raises:
        StateError: the folder is a device's, or the registrar's.
    """
    for name, whose in _ANOTHERS.items():
        if (folder / name).exists():
            raise StateError(
                f"the folder {str(folder)!r} is {whose}: it holds {name!r}",
                hint="give the coordinator a state_dir of its own",
            )


class Database:
    """Facts, counters and marks, and transactions over whatever else is in it."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        path = folder / "coordinator.db"
        if read_only and not path.exists():
            raise StateError(
                f"no coordinator state in {str(folder)!r}",
                hint="give the state_dir of a coordinator.toml",
            )
        if not path.exists():
            require_own(folder)
            self._refuse_beside_models("is gone")
        elif path.is_file() and path.stat().st_size == 0:  # to open it would remove its log
            self._refuse_beside_models("is empty")
        with _database_errors(folder):
            if not read_only:
                make_folder(folder)
            require_database(path)
            uri = f"{path.resolve().as_uri()}{'?mode=ro' if read_only else ''}"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
            try:
                self._prepare(folder, read_only=read_only)
                self.marks = Marks(self._written_marks())
                """What advances is written with the next transaction, or at `close`."""
            except BaseException:
                self._db.close()
                raise
        self._counts: Counter[str] = Counter()

    def _refuse_beside_models(self, state: str) -> None:
        """It is made before anything else is: a new one would silently begin a new federation."""
        if any((self.folder / "blobs").glob("*")):
            raise StateError(
                f"{str(self.folder / 'coordinator.db')!r} {state}, "
                "and the models beside it are still there",
                hint="restore it from a backup, or remove the state folder to start afresh",
            )

    def _prepare(self, folder: Path, *, read_only: bool) -> None:
        self._db.execute("PRAGMA busy_timeout = 5000")
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._refuse_beside_models("has no tables")
        if not read_only:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if not read_only:
            if version in EARLIER:
                kept = keep_earlier(self._db, folder, version)
                told = "the state has schema %d, and becomes %d; as it was, it is kept in %s"
                _log.info(told, version, SCHEMA_VERSION, kept)
            version = prepare(self._db)
        if version != SCHEMA_VERSION:
            older = "start the coordinator once, which brings it up to date"
            newer = (
                "use the fedtide version that wrote it; or go back to the state before that one: "
                "docs/operations.md, upgrades"
            )
            raise StateError(
                f"the state in {str(folder)!r} has schema {version}, expected {SCHEMA_VERSION}",
                hint=older if version in EARLIER else newer,
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
                marks = self._write_marks()
                reach("disk: commit")
                self._db.execute("COMMIT")
                self._counts.clear()
                self.marks.written(marks)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read in here is of one moment, whoever writes meanwhile."""
        with _database_errors(self.folder):
            self._db.execute("BEGIN")
        try:
            self.fact("run_id")  # from here on: BEGIN alone reads nothing
            yield
        finally:
            self._db.execute("ROLLBACK")

    def copy_to(self, target: sqlite3.Connection, copied: Callable[[int], None]) -> None:
        """Copy the database; in a `snapshot`, that of its moment. `copied` is told of bytes.

        Raises:
            sqlite3.Error: it cannot be read, or the copy cannot be written.
        """
        page_bytes = int(self._db.execute("PRAGMA page_size").fetchone()[0])
        left = int(self._db.execute("PRAGMA page_count").fetchone()[0])

        def told(_status: int, remaining: int, _total: int) -> None:
            nonlocal left
            copied((left - remaining) * page_bytes)
            left = remaining

        self._db.backup(target, pages=1_000, progress=told)

    def check(self) -> None:
        """Look at every page.

        Raises:
            StateError: it is damaged.
        """
        with _database_errors(self.folder):
            (said,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if said != "ok":
            raise StateError(f"the database in {str(self.folder)!r} is damaged: {said}")

    def close(self) -> None:
        """Close the database."""
        if self._counts or self.marks.unwritten():
            with self.transaction():
                pass
        self._db.close()

    @reading
    def fact(self, name: str) -> str | None:
        """A named value, such as the run's id."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        """Set a named value."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def count(self, name: str) -> None:
        """Add one to a named counter; written with the next transaction, or at `close`."""
        self._counts[name] += 1

    def _write_counts(self) -> None:
        self._db.executemany(
            "INSERT INTO counts VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            list(self._counts.items()),
        )

    def _write_marks(self) -> dict[str, int]:
        marks = self.marks.unwritten()
        self._db.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?)", list(marks.items()))
        return marks

    @reading
    def _written_marks(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT signer, number FROM marks").fetchall())

    @reading
    def counts(self) -> dict[str, int]:
        """All counters, sorted by name."""
        written = Counter(dict(self._db.execute("SELECT name, value FROM counts")))
        return dict(sorted((written + self._counts).items()))


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
