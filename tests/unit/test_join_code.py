"""The join code: one line, and a good word for each way in which it goes wrong."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from fedtide.errors import ConfigError
from fedtide.join_code import (
    JoinCode,
    clock_trouble,
    parse_join_code,
    read_join_code,
    write_join_code,
)
from tests.identities import Authority

AUTHORITY = Authority()
NOW = datetime.now(UTC)


def make(*, name: str = "join-0123456789abcdef", key: Ed25519PrivateKey | None = None) -> JoinCode:
    own = Ed25519PrivateKey.generate()
    pem = AUTHORITY.certify(name, own.public_key(), until=NOW + timedelta(hours=1))
    return JoinCode(
        "tides",
        "server.example.org",
        8883,
        AUTHORITY.certificate.public_bytes(Encoding.DER),
        x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),
        (key or own).private_bytes_raw(),
    )


CODE = make()
LINE = write_join_code(CODE)


def test_a_code_is_one_line_and_says_what_was_written() -> None:
    assert LINE.startswith("fedtide-join-1.")
    assert len(LINE) < 4096, "a terminal takes no longer line"
    assert LINE.split() == [LINE]
    assert parse_join_code(LINE) == CODE
    assert CODE.claim == "join-0123456789abcdef"


@given(st.lists(st.integers(0, len(LINE)), max_size=20))
def test_line_breaks_and_quotes_of_pasting_do_no_harm(places: list[int]) -> None:
    pasted = LINE
    for place in sorted(places, reverse=True):
        pasted = pasted[:place] + " \r\n" + pasted[place:]
    assert parse_join_code(f' "{pasted}"\n') == CODE


@given(st.integers(0, len(LINE) - 1))
def test_a_code_that_was_cut_off_is_called_so(length: int) -> None:
    with pytest.raises(ConfigError, match=r"cut off|is empty"):
        parse_join_code(LINE[:length])


@given(st.integers(len("fedtide-join-1."), len(LINE) - 1), st.sampled_from("AZaz09-_"))
def test_a_mistyped_code_is_refused(place: int, char: str) -> None:
    mistyped = LINE[:place] + char + LINE[place + 1 :]
    if mistyped == LINE:
        return
    if place == len(LINE) - 1:  # it may differ in bits that belong to no byte
        with suppress(ConfigError):
            assert parse_join_code(mistyped) == CODE
        return
    with pytest.raises(ConfigError, match="join code"):
        parse_join_code(mistyped)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "'hello' is no join code"),
        ("", "it is empty"),
        (LINE.replace("join-1.", "join-2."), "is of version 2, and this fedtide reads version 1"),
        (LINE + "AAAA", "followed by something else"),
        (LINE[:100] + "!" + LINE[100:], "a character that belongs to none: '!', the 101th"),
        (LINE + "A" * 10_000, "longer than a join code"),
        (write_join_code(make(name="pi-1")), "of different claims"),
        (write_join_code(make(key=Ed25519PrivateKey.generate())), "of different claims"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_join_code(text)
    assert caught.value.hint


@given(st.text(max_size=200))
def test_nothing_but_a_message_comes_of_junk(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_join_code(text)
    with pytest.raises(ConfigError):
        parse_join_code("fedtide-join-1." + text)


def test_a_code_comes_from_the_command_line_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pi-1.join"
    file.write_text(LINE + "\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(LINE + "\n"))
    assert [read_join_code(given) for given in (LINE, str(file), "-")] == [CODE] * 3


@pytest.mark.parametrize("given", ["nowhere/pi-1.join", "a\0b", ".", "x" * 5_000])
def test_a_file_that_cannot_be_read_is_a_message(given: str) -> None:
    with pytest.raises(ConfigError, match="neither a join code nor a join file"):
        read_join_code(given)


def test_a_file_of_something_else_is_a_message(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match="is no join file"):
        read_join_code(str(file))


def test_an_expired_code_is_refused_and_a_clock_that_was_never_set_judges_nobody() -> None:
    assert clock_trouble(CODE) is None
    with pytest.raises(ConfigError, match=r"has expired: it was good until 20\d\d-"):
        clock_trouble(CODE, NOW + timedelta(hours=2))
    trouble = clock_trouble(CODE, datetime(1969, 12, 31, tzinfo=UTC))
    assert trouble is not None
    assert "it has not been set" in trouble
