"""What is read of a coordinator's store, beside the coordinator that writes it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from coordinator.fleet import TWIN_REFUSED
from coordinator.inquest import damage, read_store, upload_quiet_ms
from coordinator.round_state import Member, RoundState, TaskDeclined
from coordinator.store import Store
from fedtide.errors import StateError

NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 86_400_000


def test_everything_that_the_diagnosis_needs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    state = RoundState("collecting", 2, cohort=(Member("a"), Member("b", "declined")))
    with store.transaction():
        store.save_event(TaskDeclined(1, "c"), state, 0)
        store.save_event(TaskDeclined(2, "b", "no data"), state, 0)
        store.heard("a", "{}", 70)
        store.count(TWIN_REFUSED)
    database = sqlite3.connect(tmp_path / "coordinator.db")
    with database:
        for round_id, opened, closed in ((1, 1_000, 5_000), (2, 6_000, None)):
            database.execute(
                "INSERT INTO rounds (round_id, kind, opened_at_ms, closed_at_ms, cohort_json,"
                " base_version, plan_json, encoding)"
                " VALUES (?, 'train', ?, ?, '[]', 0, '{}', 'f32')",
                (round_id, opened, closed),
            )
        for round_id, device, verdict, at_ms in (
            (1, "a", "accepted", 4_000),
            (1, "b", "discarded", 5_500),
            (1, "c", "rejected", 4_500),
            (2, "a", "rejected", 7_000),
        ):
            database.execute(
                "INSERT INTO updates (update_id, round_id, device_id, verdict, reason, at_ms,"
                " examples, training_ms, payload_bytes, update_json)"
                " VALUES ('u', ?, ?, ?, 'why', ?, 1, 1, 1, '{}')",
                (round_id, device, verdict, at_ms),
            )
        for device, until_ms in (("d", NOW_MS + DAY_MS), ("e", NOW_MS - DAY_MS)):
            database.execute("INSERT INTO standings VALUES (?, 3, ?, 'bad')", (device, until_ms))
    database.close()
    known = read_store(tmp_path)
    store.close()
    assert known.state == state
    assert known.heard_at_ms == {"a": 70}
    assert known.verdicts == {"a": ("rejected", "why")}
    assert known.declines == {"b": "no data", "c": ""}
    assert known.standings == {"d": (NOW_MS + DAY_MS, "bad")}
    assert sorted(known.answered_ms) == [3_000, 4_500]
    assert known.late_count == 1
    assert known.twins_refused == 1
    assert damage(tmp_path) == ""


def test_no_store_and_no_uploads(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no coordinator state"):
        read_store(tmp_path)
    assert upload_quiet_ms(tmp_path) is None
    (tmp_path / "partial").mkdir()
    assert upload_quiet_ms(tmp_path) is None
    (tmp_path / "partial" / "x").write_bytes(b"")
    quiet = upload_quiet_ms(tmp_path)
    assert quiet is not None
    assert quiet < 60_000
