"""The registry's SQLite file: opened, changed in transactions, and told what is wrong with it.

WAL with synchronous=FULL: what was committed survives a power cut.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedtide.errors import StateError
from fedtide.failpoints import reach
from fedtide.files import make_folder, require_database

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE devices (
    name TEXT PRIMARY KEY, standing TEXT NOT NULL, key BLOB UNIQUE, new_name TEXT UNIQUE,
    changed_at_ms INTEGER NOT NULL) STRICT;
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, name TEXT NOT NULL,
    device TEXT REFERENCES devices (name) ON UPDATE CASCADE,
    pem BLOB NOT NULL, issued_at_ms INTEGER NOT NULL, not_after_ms INTEGER NOT NULL,
    revoked_at_ms INTEGER) STRICT;
CREATE INDEX certificates_by_device ON certificates (device);
CREATE TABLE claims (
    claim_id TEXT PRIMARY KEY,
    device TEXT NOT NULL REFERENCES devices (name) ON UPDATE CASCADE,
    key BLOB NOT NULL, expires_at_ms INTEGER NOT NULL, used_at_ms INTEGER) STRICT;
CREATE INDEX claims_by_device ON claims (device);
"""


class Database:
    """See the module. The service's thread and commands may have it open at the same time."""

    def __init__(self, folder: Path) -> None:
        """Open `registry.db` in `folder`, or make it.

        Raises:
            StateError: the disk refuses, or it is of another version, damaged or foreign.
        """
        self.path = folder / "registry.db"
        with self._errors():
            make_folder(folder)
            require_database(self.path)
            if not self.path.exists():  # SQLite would make it readable by others
                self.path.touch(mode=0o600)
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA busy_timeout = 10000")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StateError(
                    f"the registry {str(self.path)!r} has schema {version}, "
                    f"expected {SCHEMA_VERSION}",
                    hint="use the fedtide version that wrote it",
                )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nobody changes the registry in here: for writing down what follows from it."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._errors(), self._transaction():
            yield
            reach("disk: commit")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            damaged = not isinstance(exc, sqlite3.OperationalError | OSError)
            raise StateError(
                f"the registry {str(self.path)!r} cannot be used: {exc}",
                hint="it is damaged: restore the folder from a backup"
                if damaged
                else "run this as root or as the folder's owner, with room on its disk",
            ) from exc
