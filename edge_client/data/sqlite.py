"""An SQLite query, read only: each of its rows is an example, the last column the label."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from edge_client.data import WRITING, Loaded, NoExamplesError, NotNowError, Problems, file_stamp
from edge_client.data.collector import Collector
from edge_client.data.config import DataConfig
from edge_client.data.table import Table, chosen_columns
from fedtide.dataset import A_FILE
from fedtide.errors import DataError
from fedtide.files import require_database
from fedtide.manifest import Manifest

_BUSY_S = 2.0
"""For so long another program may hold the database locked."""
_STEPS = 10_000
"""Of SQLite's machine, between two looks at the clock."""
_FIELD_BYTES_MAX = 1 << 26
_READING = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_LABELS_SHOWN = 50
_COMMENT = ("--", "/*")
_TOKEN = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|.""", re.DOTALL)
"""Of SQL, as far as it tells where a comment begins."""


class SqliteQuery:
    """See the module."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        assert config.query is not None
        self._config, self._path = config, config.path
        self._query = _without_end(config.query)

    def stamp(self) -> Hashable:
        """Of the database and its log of what is not in it yet: one of them changes at a commit."""
        log = self._path.with_name(f"{self._path.name}-wal")
        try:
            status = log.stat()
            pending = (status.st_mtime_ns, status.st_size) if status.st_size else None
        except OSError:
            pending = None
        return file_stamp(self._path), pending

    def describe(self, problems: Problems, rows_max: int | None = None) -> dict[str, Any]:
        """Columns, rows, and what stands in the label's column."""
        del problems, rows_max  # the values are not looked at
        with self._opened() as (database, count):
            if not count:
                raise NoExamplesError(
                    f"{self._config.where} has no examples: the query has no rows"
                )
            cursor = database.execute(self._query)
            names = [name for name, *_ in cursor.description]
            _, labels = chosen_columns(self._config, names)
            chosen = ", ".join(f'"{names[label]}"'.replace('"', '""')[1:-1] for label in labels)
            grouped = (
                f"SELECT {chosen}, COUNT(*) FROM ({self._query}\n) "  # noqa: S608 - the owner's own
                f"GROUP BY {chosen} ORDER BY 2 DESC LIMIT {_LABELS_SHOWN}"
            )
            seen = {", ".join(map(str, row[:-1])): row[-1] for row in database.execute(grouped)}
        return {"columns": names, "rows": count, "labels": seen}

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """The rows of one moment, whatever is written meanwhile."""
        with self._opened() as (database, count):
            cursor = database.execute(self._query)
            names = [name for name, *_ in cursor.description]
            collector = Collector(self._config, manifest, count, problems)
            table = Table(self._config, manifest, names, collector, problems)
            for number, fields in enumerate(cursor, 1):
                table.add(fields, f"row {number} of the query")
            table.end()
        return collector.finish()

    @contextmanager
    def _opened(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A connection that can do nothing but read, and how many rows the query has.

        Raises:
            DataError: the database or the query cannot be used, or it takes too long.
            NotNowError: another program holds it locked.
        """
        file_stamp(self._path)
        try:
            require_database(self._path)
        except OSError as exc:
            raise DataError(
                f"database {str(exc.filename)!r} cannot be read: {exc.strerror}",
                hint=A_FILE,
            ) from exc
        until_s = time.monotonic() + self._config.time_ms_max / 1000
        database = None
        try:
            database = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=ro",
                uri=True,
                timeout=_BUSY_S,
                isolation_level=None,
            )
            database.text_factory = _text
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _FIELD_BYTES_MAX)
            database.set_progress_handler(lambda: time.monotonic() > until_s, _STEPS)
            database.execute("BEGIN")
            database.set_authorizer(_only_reading)
            # By itself first, so that errors quote it as it was given.
            database.execute(f"EXPLAIN {self._query}").close()
            counted = f"SELECT COUNT(*) FROM ({self._query}\n)"  # noqa: S608 - the owner's own
            count = int(database.execute(counted).fetchone()[0])
            yield database, count
        except (sqlite3.Error, sqlite3.Warning) as exc:
            raise self._explained(exc, time.monotonic() > until_s) from exc
        except UnicodeDecodeError as exc:  # even of SQLite's own messages, if the file is damaged
            raise DataError(f"the query on {str(self._path)!r} fails: {exc}") from exc
        finally:
            if database is not None:
                database.close()

    def _explained(self, exc: sqlite3.Error | sqlite3.Warning, late: bool) -> DataError:
        where = repr(str(self._path))
        code = getattr(exc, "sqlite_errorcode", 0) or 0
        if code & 0xFF in _BUSY:
            return NotNowError(WRITING)
        if late and code == sqlite3.SQLITE_INTERRUPT:
            return DataError(
                f"the query on {where} takes longer than {self._config.time_ms_max:,} ms",
                hint="raise data.time_ms_max, or make the query simpler (an index, LIMIT)",
            )
        hints = {
            sqlite3.SQLITE_CANTOPEN: "let this user read the file; a database that is written in "
            "WAL mode needs its folder to be writable, too",
            sqlite3.SQLITE_NOTADB: "is [data] path the right file?",
            sqlite3.SQLITE_AUTH: "data.query may only SELECT",
            sqlite3.SQLITE_ERROR: "data.query is one SELECT that yields inputs and label",
        }
        hint = hints.get(code & 0xFF or sqlite3.SQLITE_ERROR)  # Python's own have no code
        return DataError(f"the query on {where} fails: {exc}", hint=hint)


def _without_end(query: str) -> str:
    """Without the semicolon and the comments behind it: it is put into other queries."""
    tokens = _TOKEN.findall(query)
    while tokens and (tokens[-1] == ";" or tokens[-1].isspace() or tokens[-1][:2] in _COMMENT):
        tokens.pop()
    return "".join(tokens)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _only_reading(action: int, _first: str | None, _second: str | None, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
