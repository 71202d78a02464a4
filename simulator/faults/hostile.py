"""What a hostile device says: a broker's ACL confines it to its own topics, nothing else does."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import numpy as np

from fedtide.bundle import sha256_hex
from fedtide.messages import BlobRef, Update
from fedtide.vectors import ENCODINGS, Vector

Twist = Callable[[Update, bytes], tuple[Update, bytes]]


def _with_values(update: Update, content: bytes, change: Callable[[Vector], None]) -> bytes:
    values = np.frombuffer(content, ENCODINGS[update.encoding]).astype(np.float32)
    with np.errstate(over="ignore"):
        change(values)
        return values.astype(ENCODINGS[update.encoding]).tobytes()


def _replaced(update: Update, content: bytes) -> tuple[Update, bytes]:
    blob = BlobRef(sha256_hex(content), len(content))
    return msgspec.structs.replace(update, blob=blob), content


def _nan(values: Vector) -> None:
    values[len(values) // 2] = np.nan


def _huge(values: Vector) -> None:
    values *= 1_000


def _beyond(values: Vector) -> None:
    values[0] = 2e30


def _content(change: Callable[[Vector], None]) -> Twist:
    def twist(update: Update, content: bytes) -> tuple[Update, bytes]:
        if not content:
            return update, content
        return _replaced(update, _with_values(update, content, change))

    return twist


def _header(**changes: object) -> Twist:
    return lambda update, content: (msgspec.structs.replace(update, **changes), content)


def _longer(update: Update, content: bytes) -> tuple[Update, bytes]:
    return _replaced(update, content + b"\0\0\0\0") if content else (update, content)


def _wrong_digest(update: Update, content: bytes) -> tuple[Update, bytes]:
    """The content is another than the one it announces."""
    if not content:
        return update, content
    blob = BlobRef(sha256_hex(b"another"), len(content))
    return msgspec.structs.replace(update, blob=blob), content


TWISTS: dict[str, Twist] = {
    "nan": _content(_nan),
    "huge": _content(_huge),
    "beyond": _content(_beyond),
    "no examples": _header(examples=0),
    "many examples": _header(examples=2**52),
    "longer": _longer,
    "another model": _header(model="0" * 64),
    "no content": _header(blob=None),
    "wrong digest": _wrong_digest,
}


def junk(rng: random.Random, heard: list[bytes]) -> bytes:
    """Something to say: noise, or what somebody said before, whole, cut or changed."""
    if not heard or rng.random() < 0.2:
        return rng.randbytes(rng.choice((0, 1, 40, 3_000)))
    payload = rng.choice(heard)
    kind = rng.randrange(4)
    if kind == 0:
        return payload
    if kind == 1:
        return payload[: rng.randrange(len(payload))] if payload else b""
    if kind == 2:
        place = rng.randrange(max(1, len(payload)))
        return payload[:place] + bytes([rng.randrange(256)]) + payload[place + 1 :]
    return _changed(rng, payload)


def _changed(rng: random.Random, payload: bytes) -> bytes:
    try:
        said = msgspec.msgpack.decode(payload)
        update = said["body"]["update"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return payload
    field, value = rng.choice(
        (
            ("run_id", "foreign"),
            ("round_id", 999),
            ("round_id", 0),
            ("update_id", "another"),
            ("examples", 7),
            ("kind", "evaluate"),
            ("encoding", "f16"),
        )
    )
    update[field] = value
    return msgspec.msgpack.encode(said)
