"""A seal fits the message, topic, sequence and key that it was made for, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtide.key_set import open_key_set, seal_key_set
from fedtide.keys import new_key, public_bytes
from fedtide.messages import Beacon, KeySet, encode
from fedtide.seal import OVERHEAD_BYTES, SEQUENCE_MAX, is_sealed_by, open_sealed, seal
from fedtide.topics import Topics

KEY, OTHER = new_key(), new_key()
PUBLIC = public_bytes(KEY)
TOPICS = Topics("tides")
topics = st.text(max_size=60)
sequences = st.integers(0, SEQUENCE_MAX)


@given(topics, st.binary(max_size=2000), sequences)
def test_what_was_sealed_is_opened(topic: str, message: bytes, sequence: int) -> None:
    raw = seal(topic, message, KEY, sequence)
    assert len(raw) == len(message) + OVERHEAD_BYTES
    sealed = open_sealed(raw)
    assert sealed is not None
    assert (sealed.message, sealed.sequence) == (message, sequence)
    assert is_sealed_by(PUBLIC, topic, sealed)
    assert not is_sealed_by(public_bytes(OTHER), topic, sealed)


@given(st.data(), topics, st.binary(max_size=200), sequences)
def test_a_single_flipped_bit_breaks_it(
    data: st.DataObject, topic: str, message: bytes, sequence: int
) -> None:
    raw = bytearray(seal(topic, message, KEY, sequence))
    place = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[place // 8] ^= 1 << place % 8
    sealed = open_sealed(bytes(raw))
    assert sealed is None or not is_sealed_by(PUBLIC, topic, sealed)


@given(st.tuples(topics, topics).filter(lambda pair: pair[0] != pair[1]), st.binary(max_size=99))
def test_it_fits_no_other_topic(pair: tuple[str, str], message: bytes) -> None:
    sealed = open_sealed(seal(pair[0], message, KEY, 1))
    assert sealed is not None
    assert not is_sealed_by(PUBLIC, pair[1], sealed)


def test_bytes_cannot_wander_between_topic_and_message() -> None:
    sealed = open_sealed(seal("a/b", b"cd", KEY, 1))
    assert sealed is not None
    assert not is_sealed_by(PUBLIC, "a/bc", sealed._replace(message=b"d"))
    assert not is_sealed_by(PUBLIC, "a/", sealed._replace(message=b"bcd"))


@given(st.binary(max_size=300))
def test_anything_at_all_can_be_opened(raw: bytes) -> None:
    sealed = open_sealed(raw)
    assert sealed is None or not is_sealed_by(PUBLIC, "a", sealed)


def test_no_message_looks_like_a_seal() -> None:
    assert open_sealed(encode(Beacon(True, "x" * 200), "1")) is None


@given(st.integers(1, 2**53 - 1), st.integers(1, 8))
def test_a_key_set_is_believed_if_the_authority_has_sealed_it(version: int, keys: int) -> None:
    key_set = KeySet(version, tuple(bytes([n]) * 32 for n in range(keys)))
    raw = seal_key_set(TOPICS, key_set, KEY)
    assert open_key_set(TOPICS, raw, PUBLIC) == key_set
    assert "not sealed by" in str(open_key_set(TOPICS, raw, public_bytes(OTHER)))
    assert "not sealed by" in str(open_key_set(Topics("other"), raw, PUBLIC))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not sealed"),
        (b"\xc1fs\x01" + bytes(99), "not sealed by"),
        (seal(TOPICS.keys, encode(Beacon(True, "x"), "1"), KEY, 1), "no key set"),
        (seal(TOPICS.keys, encode(KeySet(2, (PUBLIC,)), "1"), KEY, 3), "version"),
        (seal(TOPICS.keys, encode(KeySet(2, ()), "1"), KEY, 2), "no key set"),
        (seal(TOPICS.keys, encode(KeySet(2, (b"short",)), "1"), KEY, 2), "no key set"),
        (seal(TOPICS.beacon, encode(KeySet(2, (PUBLIC,)), "2"), KEY, 2), "not sealed by"),
    ],
    ids=["plain", "junk", "beacon", "version", "no key", "short key", "topic"],
)
def test_another_thing_is_no_key_set(raw: bytes, reason: str) -> None:
    assert reason in str(open_key_set(TOPICS, raw, PUBLIC))
