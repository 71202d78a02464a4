"""The tables of the coordinator's database, and how those of an earlier version become these."""

from __future__ import annotations

import json
import sqlite3

SCHEMA_VERSION = 5
_TABLES = """
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
_SINCE_3 = """
ALTER TABLE rounds ADD COLUMN norm_reference REAL;
ALTER TABLE rounds ADD COLUMN norm_factor REAL;
ALTER TABLE updates ADD COLUMN digest TEXT;
ALTER TABLE updates ADD COLUMN model TEXT;
ALTER TABLE updates ADD COLUMN norm REAL;
ALTER TABLE updates ADD COLUMN joined INTEGER;
ALTER TABLE updates ADD COLUMN staleness INTEGER;
CREATE INDEX updates_by_id ON updates (update_id, device_id);
CREATE INDEX updates_by_digest ON updates (digest);
CREATE INDEX updates_by_round_joined ON updates (joined);
CREATE TABLE standings (
    device_id TEXT PRIMARY KEY, strikes INTEGER NOT NULL, until_ms INTEGER NOT NULL,
    reason TEXT NOT NULL);
"""
"""`joined` is the round in whose model an accepted update counts, or with which it was abandoned;
NULL while it waits for one. `norm_reference` is the median norm that updates are held against."""


_SINCE_4 = "ALTER TABLE rounds ADD COLUMN weights TEXT NOT NULL DEFAULT 'examples';"
_SINCE_5 = "CREATE TABLE marks (signer TEXT PRIMARY KEY, number INTEGER NOT NULL);"
"""The newest number heard of each key, by its id in hexadecimal digits."""
_CHANGES = {
    0: _TABLES + _SINCE_3 + _SINCE_4 + _SINCE_5,
    2: _SINCE_3 + _SINCE_4 + _SINCE_5,
    3: _SINCE_4 + _SINCE_5,
    4: _SINCE_5,
}
"""What makes the tables of a version into those of this one; 0: there are none."""
EARLIER = frozenset(_CHANGES) - {0}
"""Versions that can be brought up to date."""


def prepare(database: sqlite3.Connection) -> int:
    """Make the tables, or bring those of 2 to 4 up to date, in one transaction; the version."""
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version not in _CHANGES:
        return version
    database.execute("BEGIN IMMEDIATE")
    try:
        for statement in _CHANGES[version].split(";"):
            database.execute(statement)
        if version < 3:
            _fill_from_2(database)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException as exc:
        if database.in_transaction:
            database.execute("ROLLBACK")
        if isinstance(exc, (ValueError, KeyError, TypeError)):
            raise sqlite3.DatabaseError(
                f"a row of version {version} cannot be read: {exc}"
            ) from exc
        raise
    return SCHEMA_VERSION


def _fill_from_2(database: sqlite3.Connection) -> None:
    """Every accepted update counted in its own round, and every member was invited to it."""
    rows = database.execute("SELECT rowid, update_json FROM updates").fetchall()
    for rowid, raw in rows:
        update = json.loads(raw)
        digest = (update.get("blob") or {}).get("digest")
        database.execute(
            "UPDATE updates SET digest = ?, model = ? WHERE rowid = ?",
            (digest, update["model"], rowid),
        )
    database.execute(
        "UPDATE updates SET joined = round_id, staleness = 0 WHERE verdict = 'accepted'"
        " AND round_id IN (SELECT round_id FROM rounds WHERE outcome != 'open')"
    )
    row = database.execute("SELECT value FROM facts WHERE name = 'round_state'").fetchone()
    if row is not None:
        state = json.loads(row[0])
        for member in state["cohort"]:
            member |= {"round_id": state["round_id"], "version": state["model_version"]}
        database.execute(
            "UPDATE facts SET value = ? WHERE name = 'round_state'", (json.dumps(state),)
        )
