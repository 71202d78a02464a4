"""The state as an earlier version of fedtide left it, kept when a newer one changes its tables."""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

from fedtide.failpoints import reach
from fedtide.files import sync_folder


def earlier_path(folder: Path, version: int) -> Path:
    """Where the database of this schema version is kept."""
    return folder / f"coordinator.db.schema-{version}"


def keep_earlier(database: sqlite3.Connection, folder: Path, version: int) -> Path:
    """Keep a copy of the database, which has this schema version, for whoever has to go back.

    The copy is another run (ADR 22): when somebody goes back to it, devices know what came after.

    Raises:
        sqlite3.Error, OSError: the disk is full or failing.
    """
    path = earlier_path(folder, version)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(sqlite3.connect(beside, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")
            database.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log
            run_id = uuid.uuid4().hex[:16]
            copy.execute("UPDATE facts SET value = ? WHERE name = 'run_id'", (run_id,))
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        reach("disk: rename")
        beside.replace(path)
        sync_folder(folder)
    finally:
        beside.unlink(missing_ok=True)
    return path
