"""Messages: what is encoded is decoded, and nothing that arrives raises or costs much."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtide.limits import BLOB_BYTES_MAX, MEASURES_MAX, METRIC_MAX
from fedtide.measures import Measure, Metrics
from fedtide.messages import (
    AnyMessage,
    BlobRef,
    Chunk,
    Envelope,
    Hello,
    Malformed,
    Offer,
    Receipt,
    Task,
    Update,
    Want,
    decode,
    encode,
)
from fedtide.plan import Plan
from tests.golden.test_golden import MESSAGES

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
naturals = st.integers(0, 2**53 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=50)
losses = st.floats(-METRIC_MAX, METRIC_MAX)
refs = st.builds(BlobRef, digests, st.integers(1, BLOB_BYTES_MAX))
ranges = st.tuples(naturals, st.integers(1, 2**53 - 1))
measure_names = st.from_regex(r"\A[a-z][a-z0-9_]{0,63}\Z")
measures = st.builds(Measure, losses, st.floats(0, METRIC_MAX))
metrics = st.builds(
    Metrics, naturals, st.dictionaries(measure_names, measures, max_size=MEASURES_MAX)
)
common = {
    "epochs": st.integers(1, 10_000),
    "batch_size": st.just("all") | st.integers(1, 1_000_000),
    "examples_at_once": st.integers(1, 1_000_000),
    "learning_rate": st.floats(1e-9, 1_000),
    "weight_decay": st.floats(0, 1_000),
    "proximal_mu": st.floats(0, 1_000),
    "clip_norm": st.none() | st.floats(1e-9, 1e6),
    "seed": naturals,
    "steps_max": st.none() | st.integers(1, 2**53 - 1),
    "training_ms_max": st.none() | st.integers(1, 2**53 - 1),
}
momenta, kept = st.floats(1e-9, 0.999), st.sampled_from(["fresh", "kept"])
plans = (
    st.builds(Plan, **common)
    | st.builds(Plan, momentum=momenta, nesterov=st.booleans(), optimizer_state=kept, **common)
    | st.builds(
        Plan,
        optimizer=st.just("adamw"),
        betas=st.tuples(momenta, momenta),
        epsilon=st.floats(1e-12, 1),
        optimizer_state=kept,
        **common,
    )
)
kinds, encodings = st.sampled_from(["train", "evaluate"]), st.sampled_from(["f32", "f16"])
updates = st.builds(
    Update,
    update_id=names,
    run_id=names,
    round_id=naturals,
    kind=kinds,
    model=digests,
    examples=naturals,
    blob=st.none() | refs,
    encoding=encodings,
    steps=naturals,
    training_ms=naturals,
    losses=st.lists(losses, max_size=5).map(tuple),
    held_out=st.none() | metrics,
)
messages: st.SearchStrategy[AnyMessage] = st.one_of(
    st.sampled_from(list(MESSAGES.values())),
    st.builds(
        Hello,
        texts,
        st.lists(texts, max_size=8).map(tuple),
        naturals,
        st.lists(texts, max_size=16).map(tuple),
        st.lists(digests, max_size=3).map(tuple),
        st.lists(names, max_size=3).map(tuple),
    ),
    st.builds(Offer, updates),
    st.builds(Want, digests, st.lists(ranges, max_size=5).map(tuple)),
    st.builds(
        Chunk,
        digests,
        st.integers(1, BLOB_BYTES_MAX),
        naturals,
        st.integers(0, 2**32 - 1),
        st.binary(min_size=1, max_size=200),
    ),
    st.builds(
        Task,
        names,
        naturals,
        kinds,
        refs,
        refs,
        naturals,
        st.integers(1, 7),
        plans,
        encodings,
        naturals,
    ),
    st.builds(Receipt, names, st.sampled_from(["accepted", "discarded", "rejected"]), texts),
)
MEMORY_BYTES_MAX = 2_000_000
"""Far above what 200 bytes can need, far below what a forged length would ask for."""


def decode_cheaply(payload: bytes) -> Envelope | Malformed:
    tracemalloc.start()
    try:
        result = decode(payload)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
        return result
    finally:
        tracemalloc.stop()


def test_the_generator_covers_the_union() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(get_args(AnyMessage))


@given(messages, st.text(st.characters(codec="utf-8"), min_size=1, max_size=64))
def test_round_trip(message: AnyMessage, message_id: str) -> None:
    assert decode(encode(message, message_id)) == Envelope(1, message_id, message)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_data(payload: bytes) -> None:
    assert isinstance(decode_cheaply(payload), Envelope | Malformed)


@settings(deadline=None)
@given(messages, st.data())
def test_mutated_messages_are_data(message: AnyMessage, data: st.DataObject) -> None:
    payload = bytearray(encode(message, "m1"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set":
            payload[at] = data.draw(st.integers(0, 255))
        elif change == "insert":
            payload[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif at:
            del payload[at:]
    result = decode_cheaply(bytes(payload))
    if isinstance(result, Envelope):
        assert decode(encode(result.body, result.id)) == result
    else:
        assert 0 < len(result.reason) <= 500


@given(st.sampled_from([b"\xdf", b"\xdd", b"\xc6", b"\xdb", b"\xc9"]), st.binary(max_size=20))
def test_forged_lengths_allocate_nothing(head: bytes, tail: bytes) -> None:
    for prefix in (b"", b"\x83\xa1v\x01\xa2id\xa1x\xa4body", b"\x81\xa1v"):
        assert isinstance(decode_cheaply(prefix + head + b"\xff\xff\xff\xff" + tail), Malformed)


def test_deep_nesting_is_malformed() -> None:
    for opening in (b"\x91", b"\x81\xa1a"):
        assert isinstance(decode(b"\x83\xa1v\x01\xa2id\xa1x\xa4body" + opening * 20_000), Malformed)


@given(messages)
def test_unknown_fields_are_ignored(message: AnyMessage) -> None:
    raw = msgspec.msgpack.decode(encode(message, "m1"))
    raw["later"] = {"new": [1, 2]}
    raw["body"]["later"] = None
    assert decode(msgspec.msgpack.encode(raw)) == Envelope(1, "m1", message)
