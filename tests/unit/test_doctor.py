"""What the doctors say where there is no broker, and of files that are wrong; never a traceback."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.round_state import RoundState
from coordinator.store import Store
from demo.local import toml
from edge_client.data import FIRST_ROWS
from fedtide import cli
from fedtide.checkup import Finding, examine, ok
from fedtide.errors import StateError
from fedtide.host_check import check_clock, check_folder
from tests import bundles

NOBODY = {"host": "127.0.0.1", "port": 1}


@pytest.fixture
def coordinator(tmp_path: Path) -> dict[str, object]:
    return {
        "federation": "tides",
        "bundle": str(bundles.build("tiny_mlp")),
        "state_dir": str(tmp_path / "state"),
        "rounds": {"cohort_size": 2},
        "broker": NOBODY,
    }


@pytest.fixture
def client(tmp_path: Path) -> dict[str, object]:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8), np.float32), y=np.zeros(4, np.int64))
    return {
        "federation": "tides",
        "device": "alpha",
        "state_dir": str(tmp_path / "alpha"),
        "data": {"path": str(tmp_path / "data.npz")},
        "broker": NOBODY,
    }


def doctor(
    folder: Path, config: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    path = folder / "config.toml"
    path.write_text(toml(config))
    code = cli.main(["doctor", "--json", str(path)])
    told = json.loads(capsys.readouterr().out)
    assert code == (8 if told["problems"] else 0)
    assert "this is a bug" not in str(told)
    return code, [f"{f['level']}: {f['what']} -> {f['todo']}" for f in told["findings"]]


def said(findings: list[str], *parts: str) -> bool:
    return any(all(part in finding for part in parts) for finding in findings)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\x00", "is not TOML"),
        (b"x = 1\n", "is neither a coordinator's configuration"),
        (b"bundle = 3\nnonsense = 4\n", "PROBLEM"),
        (b'device = "a/b"\n', "PROBLEM"),
        (b'broker_dir = "b"\nport = 0\n', "PROBLEM"),
    ],
)
def test_wrong_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    assert cli.main(["doctor", str(tmp_path / "x.toml")]) == (8 if expected == "PROBLEM" else 2)
    told = capsys.readouterr()
    assert expected in told.out + told.err
    assert "Traceback" not in told.out + told.err


def test_no_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], coordinator: dict[str, object]
) -> None:
    code, found = doctor(tmp_path, coordinator, capsys)
    assert code == 8
    assert said(found, "problem: no broker at 127.0.0.1:1", "start the broker")
    assert said(found, "ok: bundle", "is intact")
    assert said(found, "ok: there is no state yet")
    assert not (tmp_path / "state").exists(), "a doctor makes nothing"
    unknown = {**coordinator, "broker": {"host": "no.such.host.invalid"}}
    _, found = doctor(tmp_path, unknown, capsys)
    assert said(found, "problem: no broker at no.such.host.invalid", "no known name")


def test_a_broker_that_says_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    client: dict[str, object],
) -> None:
    monkeypatch.setattr("fedtide.broker_check.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = {"host": "127.0.0.1", "port": silent.getsockname()[1]}
        code, found = doctor(tmp_path, {**client, "broker": broker}, capsys)
    assert code == 8
    assert said(found, "problem: no broker answered at 127.0.0.1", "is it MQTT at this port?")
    assert said(found, "ok: the data can be read")


@pytest.mark.parametrize("damage", ["header", "page", "row"])
def test_a_damaged_database(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    coordinator: dict[str, object],
    damage: str,
) -> None:
    store = Store(tmp_path / "state")
    with store.transaction():
        store.set_fact("round_state", "{" if damage == "row" else "{}")
        for number in range(500):
            store.heard(f"device-{number}", "{}", 0)
    store.close()
    path = tmp_path / "state" / "coordinator.db"
    raw = bytearray(path.read_bytes())
    if damage == "header":
        raw[:100] = os.urandom(100)
    elif damage == "page":
        for start in range(4096, len(raw), 4096):
            raw[start + 8 : start + 64] = b"\xff" * 56
    path.write_bytes(raw)
    code, found = doctor(tmp_path, coordinator, capsys)
    assert code == 8
    assert said(found, "problem", "coordinator", "backup"), found


@pytest.mark.parametrize("evaluation", [{}, {"data": "test.npz"}])
def test_models_that_nobody_judges(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    coordinator: dict[str, object],
    evaluation: dict[str, object],
) -> None:
    store = Store(tmp_path / "state")
    with store.transaction():
        store.save_state(RoundState(rounds_done=1))
    store.close()
    _, found = doctor(tmp_path, {**coordinator, "evaluation": evaluation}, capsys)
    assert said(found, "warning: nobody has judged the models", "set one") == (not evaluation)


def test_a_test_set_that_does_not_fit_and_one_that_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], coordinator: dict[str, object]
) -> None:
    path = tmp_path / "test.npz"
    given = {**coordinator, "evaluation": {"data": str(path)}}
    assert said(doctor(tmp_path, given, capsys)[1], "problem", "test.npz", "cannot be read")
    np.savez(path, x=np.zeros((4, 8), np.float32), y=np.zeros(4, np.int64))
    assert said(doctor(tmp_path, given, capsys)[1], "ok: 4 examples to judge models on")


def test_a_folder_of_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], coordinator: dict[str, object]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "session.0").touch()
    _, found = doctor(tmp_path, coordinator, capsys)
    assert said(found, "problem", "is a device's", "state_dir of its own")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.level for f in check_folder(tmp_path, 0, "it")] == ["ok"]
    assert [f.level for f in check_folder(tmp_path, 2**62, "it")] == ["problem"]

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        list(check_folder(tmp_path, 0, "it"))
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    assert [f.level for f in check_clock(tmp_path)] == ["ok"]
    later = tmp_path / "session.0"
    later.write_bytes(b"")
    os.utime(later, (time.time() + 7_300,) * 2)
    assert [f.level for f in check_clock(tmp_path)] == ["warning"]


def test_a_device_of_which_all_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], client: dict[str, object]
) -> None:
    (tmp_path / "alpha").mkdir()
    for generation in (0, 1):
        (tmp_path / "alpha" / f"session.{generation}").write_bytes(b"x" * 99)
    (tmp_path / "data.npz").write_bytes(b"garbage")
    broker = {**NOBODY, "username": "alpha", "password_file": str(tmp_path / "absent")}
    code, found = doctor(tmp_path, {**client, "broker": broker}, capsys)
    assert code == 8
    assert said(found, "warning: both generations of", "starts afresh")
    assert said(found, "problem: data file", "cannot be read: it is no .npz archive")
    assert said(found, "problem: broker.password_file", "cannot be read")


def test_without_a_bundle_the_first_rows_of_a_csv_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], client: dict[str, object]
) -> None:
    """All of a large one would take longer than the doctor has."""
    data = tmp_path / "d.csv"
    client["data"] = {"path": str(data)}
    rows = ["1,2,0\n"] * FIRST_ROWS
    data.write_text("a,b,y\n" + "".join(rows) + "1\n")
    _, found = doctor(tmp_path, client, capsys)
    assert said(found, "ok: the data can be read; only the first 1,000 rows were looked at;")
    data.write_text("a,7,y\n" + "".join(rows[1:]))
    _, found = doctor(tmp_path, client, capsys)
    assert said(found, "ok: the data can be read; the first line is taken for names", "'7' is a n")
    data.write_text("a,b,y\n" + "".join(rows[1:]) + "1\n")
    _, found = doctor(tmp_path, client, capsys)
    assert said(found, "problem: line 1001 of", "has 1 fields")


@pytest.mark.parametrize("content", ["", "a,b,y\n"])
def test_data_that_are_still_to_come_are_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], client: dict[str, object], content: str
) -> None:
    (tmp_path / "d.csv").write_text(content)
    _, found = doctor(tmp_path, {**client, "data": {"path": str(tmp_path / "d.csv")}}, capsys)
    assert said(found, "warning: ", "has no examples", "if they are still to come")
    sqlite3.connect(tmp_path / "d.db").execute("CREATE TABLE m (a, y)").connection.close()
    data = {"path": str(tmp_path / "d.db"), "query": "SELECT a, y FROM m"}
    _, found = doctor(tmp_path, {**client, "data": data}, capsys)
    assert said(found, "warning: ", "the query has no rows", "if they are still to come")


def test_checks_that_hang_or_break_are_findings() -> None:
    def hangs() -> Iterator[Finding]:
        yield ok("a step")
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            nobody.accept()

    def breaks() -> Iterator[Finding]:
        yield ok("another step")
        raise sqlite3.DatabaseError("planted")

    began_s = time.monotonic()
    found = list(examine([("a disk", hangs), ("a file", breaks)], 0.2))
    assert time.monotonic() - began_s < 5
    assert [f.level for f in found] == ["ok", "problem", "ok", "problem"]
    assert "the checks of a disk did not end within 0.2 s after 'a step'" in found[1].what
    assert "planted" in found[3].what
