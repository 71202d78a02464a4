"""Every decoder on each run, and the fuzz campaign itself: it notices what it should."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile import fuzz
from tests.hostile.decoder import Decoder, Read
from tests.hostile.decoders import DECODERS
from tests.hostile.mutation import BYTES_MAX, Grammar, Mutator


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)
    tracemalloc.stop()


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_nearly_right_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    decoder = DECODERS[name](tmp_path)
    for seed in decoder.seeds:
        decoder.read(seed)

    @settings(max_examples=30, suppress_health_check=list(HealthCheck), database=None)
    @given(st.randoms(use_true_random=False))
    def reads(random: Random) -> None:
        decoder.read(Mutator(random, decoder.grammar).draw(decoder.seeds))

    reads()


@pytest.mark.parametrize("grammar", ["bytes", "json", "msgpack"])
def test_the_same_number_draws_the_same_inputs(grammar: Grammar) -> None:
    seeds = (b'{"a": [1, 2.5, "x"]}', b"\x81\xa1a\x93\x01\x02\xc4\x02ab")
    first, second = (Mutator(Random(3), grammar) for _ in range(2))
    drawn = [first.draw(seeds) for _ in range(300)]
    assert drawn == [second.draw(seeds) for _ in range(300)]
    assert len(set(drawn)) > 150
    assert max(map(len, drawn)) <= BYTES_MAX


def raises(content: bytes) -> str:
    return {b"": ""}[content]


def hangs(_content: bytes) -> str:
    while True:
        try:
            [].index(1)  # type: ignore[arg-type]
        except Exception:
            continue


def hoards(_content: bytes) -> str:
    return str(np.ones(20_000_000, np.float32).sum())


def loses_one(content: bytes) -> str:
    assert b"7" not in content
    return "read"


@pytest.mark.parametrize(
    ("read", "kind"), [(raises, "crash"), (hangs, "hang"), (hoards, "memory"), (loses_one, "crash")]
)
def test_each_kind_of_fault_is_found(
    read: Read, kind: str, tracing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS_MAX", 1.0)
    done = fuzz.turn(Decoder((b"1237",), read), number=1, inputs_max=1)
    ((finding, content),) = done.findings
    assert (finding.kind, content) == (kind, b"1237")


def test_a_decoder_in_order_has_no_findings(tracing: None, tmp_path: Path) -> None:
    done = fuzz.turn(DECODERS["update"](tmp_path), number=1, inputs_max=200)
    assert done.findings == []
    assert done.inputs == 200
    assert done.answers > 3
    assert 0 < done.largest_bytes < fuzz.BYTES_MAX


def test_an_array_whose_header_lies_is_refused_before_there_is_room(
    tracing: None, tmp_path: Path
) -> None:
    decoder = DECODERS["array"](tmp_path)
    answer, used, finding = fuzz.examine(decoder.read, decoder.seeds[2])
    assert finding is None
    assert "there are" in answer
    assert used < 1_000_000


def test_an_array_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in DECODERS["array"](tmp_path).read(b"x")


@pytest.mark.parametrize("text", [b"x = " + b"9" * 5_000, b"x = " + b"[" * 5_000, b"x = '\xff'"])
def test_what_the_toml_reader_cannot_bear_is_a_message(text: bytes, tmp_path: Path) -> None:
    assert "is not TOML" in DECODERS["configuration"](tmp_path).read(text)
