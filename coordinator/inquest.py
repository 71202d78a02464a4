"""What the coordinator's store tells about a federation, read beside a running coordinator."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from coordinator.fleet import TWIN_REFUSED
from coordinator.round_state import RoundState
from coordinator.store import Store
from fedtide.errors import StateError
from fedtide.files import require_database

ROUNDS_LOOKED_AT = 20
EVENTS_LOOKED_AT = 1_000
DEVICES_MAX = 1_000
"""Newest devices that are looked at one by one."""


class Known(NamedTuple):
    """See the module. Times are of the coordinator's clock, in ms since the epoch."""

    state: RoundState
    federation: str
    bundle: str
    model_digest: str
    model_bytes: int
    judged: bool
    """Whether anything was measured of any model."""
    heard_at_ms: dict[str, int]
    verdicts: dict[str, tuple[str, str]]
    """Of the open round: device -> verdict, reason."""
    declines: dict[str, str]
    """Of the newest events: device -> reason, which may be empty."""
    standings: dict[str, tuple[int, str]]
    """Device -> until, reason."""
    answered_ms: tuple[int, ...]
    late_count: int
    twins_refused: int
    """Hellos of a second installation under a name in use."""


def read_store(folder: Path) -> Known:
    """Everything at one moment.

    Raises:
        StateError: there is no store, or it is damaged or of another version.
    """
    store = Store(folder, read_only=True)
    try:
        state = store.load_state()
        federation, bundle = store.fact("federation") or "", store.fact("bundle") or ""
        model = store.model(state.model_version)
        counts = store.counts()
    finally:
        store.close()
    with _database(folder) as db:
        answered, late = _answers(db)
        return Known(
            state=state,
            federation=federation,
            bundle=bundle,
            model_digest="" if model is None else model.ref.digest,
            model_bytes=0 if model is None else model.ref.size_bytes,
            judged=_judged(db),
            heard_at_ms=_heard(db),
            verdicts=_verdicts(db, state.round_id),
            declines=_declines(db),
            standings=_standings(db),
            answered_ms=answered,
            late_count=late,
            twins_refused=counts.get(TWIN_REFUSED, 0),
        )


def damage(folder: Path) -> str:
    """What SQLite's integrity check finds; empty: nothing.

    Raises:
        StateError: the file cannot be read at all.
    """
    with _database(folder) as db:
        found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(3)")]
    return "" if found == ["ok"] else "; ".join(found)[:300]


@contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / "coordinator.db"
    try:
        require_database(path)
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            db.execute("PRAGMA busy_timeout = 2000")
            yield db
        finally:
            db.close()
    except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as exc:
        raise StateError(
            f"the coordinator's database {str(path)!r} cannot be read: {exc}",
            hint="stop the coordinator and restore the state folder from a backup",
        ) from exc


def _judged(db: sqlite3.Connection) -> bool:
    rows = db.execute(
        "SELECT EXISTS (SELECT 1 FROM models"
        " WHERE metrics_json IS NOT NULL OR held_out_json IS NOT NULL)"
    )
    return bool(rows.fetchone()[0])


def _heard(db: sqlite3.Connection) -> dict[str, int]:
    return dict(
        db.execute(
            "SELECT device_id, heard_at_ms FROM devices ORDER BY heard_at_ms DESC LIMIT ?",
            (DEVICES_MAX,),
        ).fetchall()
    )


def _verdicts(db: sqlite3.Connection, round_id: int) -> dict[str, tuple[str, str]]:
    rows = db.execute(
        "SELECT device_id, verdict, reason FROM updates WHERE round_id = ?", (round_id,)
    )
    return {device: (verdict, reason) for device, verdict, reason in rows}


def _declines(db: sqlite3.Connection) -> dict[str, str]:
    rows = db.execute(
        "SELECT event_json FROM events ORDER BY sequence DESC LIMIT ?", (EVENTS_LOOKED_AT,)
    )
    events = [json.loads(raw) for (raw,) in rows if "TaskDeclined" in raw]
    return {event["device_id"]: event.get("reason", "") for event in reversed(events)}


def _standings(db: sqlite3.Connection) -> dict[str, tuple[int, str]]:
    now_ms = time.time_ns() // 1_000_000
    rows = db.execute(
        "SELECT device_id, until_ms, reason FROM standings WHERE until_ms > ? LIMIT ?",
        (now_ms, DEVICES_MAX),
    )
    return {device: (until_ms, reason) for device, until_ms, reason in rows}


def _answers(db: sqlite3.Connection) -> tuple[tuple[int, ...], int]:
    """How long updates took from their round's opening, and how many came after its end."""
    rows = db.execute(
        "SELECT at_ms - opened_at_ms, at_ms > coalesce(closed_at_ms, at_ms) FROM updates"
        " JOIN rounds USING (round_id) WHERE verdict != 'rejected' AND kind = 'train'"
        " ORDER BY round_id DESC LIMIT ?",
        (ROUNDS_LOOKED_AT * 10,),
    ).fetchall()
    return tuple(took for took, _ in rows if took >= 0), sum(late for _, late in rows)


def upload_quiet_ms(folder: Path) -> int | None:
    """Since a block of an update came; None: none is on its way."""
    try:
        times = [path.stat().st_mtime for path in (folder / "partial").iterdir()]
    except OSError:
        return None
    return None if not times else max(0, round((time.time() - max(times)) * 1000))
