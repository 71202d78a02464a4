"""Who is in good standing, as of this moment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedtide.errors import ConfigError
from fedtide.files import write_atomically
from fedtide.members import Members

KEY = bytes(range(32))


def write(path: Path, devices: Any) -> None:
    write_atomically(path, json.dumps({"devices": devices}).encode())


def test_a_member_has_its_key_and_others_have_none(tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    write(path, {"alpha": {"key": KEY.hex(), "since": "a later version says more"}})
    members = Members(path)
    assert members.key("alpha") == KEY
    assert members.key("beta") is None


def test_a_change_holds_from_the_next_question_on(tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    write(path, {"alpha": {"key": KEY.hex()}})
    members = Members(path)
    for _ in range(50):
        write(path, {})
        assert members.key("alpha") is None
        write(path, {"alpha": {"key": KEY.hex()}})
        assert members.key("alpha") == KEY


def test_it_is_not_read_again_while_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "members.json"
    write(path, {"alpha": {"key": KEY.hex()}})
    members = Members(path)
    monkeypatch.setattr("fedtide.members.read_regular", lambda *_: pytest.fail("read again"))
    assert members.key("alpha") == KEY


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"devices": {"alpha": {"key": "short"}}}',
        b'{"devices": {"alpha": {"key": "' + b"G" * 64 + b'"}}}',
        b'{"devices": {"alpha": {}}}',
        b"[" * 100_000,
        b'{"devices": {"alpha": {"x": ' + b"[" * 100_000,
    ],
)
def test_where_it_cannot_be_read_nobody_is_a_member(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "members.json"
    write(path, {"alpha": {"key": KEY.hex()}})
    members = Members(path)
    write_atomically(path, content)
    assert members.key("alpha") is None
    assert members.key("alpha") is None
    assert caplog.text.count("nobody is believed") == 1
    with pytest.raises(ConfigError, match="list of members"):
        Members(path)
    write(path, {"alpha": {"key": KEY.hex()}})
    assert members.key("alpha") == KEY


def test_a_missing_list_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"list of members .*members\.json"):
        Members(tmp_path / "members.json")


def test_a_list_without_an_end_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "members.json"
    write(path, {"alpha": {"key": KEY.hex()}})
    members = Members(path)
    os.truncate(path, 1 << 40)  # no room is taken
    assert members.key("alpha") is None
    assert "it has more than 20,000,000 bytes" in caplog.text
