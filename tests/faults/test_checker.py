"""The outside checker notices what it is there for: each planted fault is found."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from simulator.faults.fake_learning import fake_bundle
from tests.faults.checker import Books, check_device, check_logs, check_receipts, check_store
from tests.federation import Federation

SMALL = 200


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What two rounds of three devices leave."""
    with (
        mock.patch("tests.federation.ELEMENTS", SMALL),
        mock.patch("tests.federation.fake_bundle", partial(fake_bundle, SMALL)),
    ):
        federation = Federation(tmp_path, count=2, devices_min=3)
        federation.add("a", "b", "c")
        federation.run(federation.finished)
        federation.kill_coordinator()
    return tmp_path / "coordinator"


def sql(text: str) -> Callable[[Path], None]:
    def plant(store: Path) -> None:
        with closing(sqlite3.connect(store / "coordinator.db")) as database, database:
            database.execute(text)

    return plant


def lose_a_blob(store: Path) -> None:
    books = Books(store)
    digest = next(r["update"]["blob"]["digest"] for r in books.updates if r["update"]["blob"])
    (store / "blobs" / digest).unlink()


def flip_a_bit_of_the_model(store: Path) -> None:
    path = store / "blobs" / Books(store).models[2]["digest"]
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "weight": (sql("UPDATE updates SET examples = examples + 1 WHERE device_id = 'a'"), "is not"),
    "uncounted": (
        sql("UPDATE updates SET verdict = 'rejected' WHERE device_id = 'b' AND round_id = 1"),
        "is not what its 2 updates make",
    ),
    "twice": (
        sql(
            "UPDATE updates SET update_id = (SELECT update_id FROM updates"
            " WHERE device_id = 'a' AND round_id = 1) WHERE device_id = 'a' AND round_id = 2"
        ),
        "accepted 2 times",
    ),
    "reason": (sql("UPDATE rounds SET outcome = 'abandoned' WHERE round_id = 1"), "reason"),
    "no model": (sql("DELETE FROM models WHERE version = 1"), "no model"),
    "blob": (lose_a_blob, "not on disk"),
    "model": (flip_a_bit_of_the_model, "model 2 is not on disk"),
}


def test_a_sound_store_has_no_findings(store: Path) -> None:
    assert check_store(store) == []
    assert len(Books(store).models) == 3


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str, store: Path) -> None:
    plant, expected = PLANTED[name]
    plant(store)
    assert re.search(expected, "\n".join(check_store(store)))


def test_a_lost_receipt_is_found(store: Path, tmp_path: Path) -> None:
    known = Books(store).updates[0]
    heard = {(known["device_id"], known["update_id"], "accepted")}
    assert check_receipts(store, heard) == []
    assert check_receipts(store, {*heard, ("z", "unknown", "accepted")})
    log = "round 1: the update is accepted\n"
    assert check_device(tmp_path / "a", log, store) == []
    assert check_device(tmp_path / "z", log, store)


def test_a_traceback_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("fine\n")
    assert check_logs([log]) == []
    log.write_text("Traceback (most recent call last)\n")
    assert check_logs([log])
