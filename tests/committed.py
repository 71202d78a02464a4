"""What a coordinator has committed, as other processes see it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def rows(state_dir: Path, sql: str, *values: str | int) -> list[tuple[Any, ...]]:
    """None as long as it has no database, or no such table."""
    path = state_dir / "coordinator.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as database:
        try:
            return database.execute(sql, values).fetchall()
        except sqlite3.OperationalError:
            return []
