"""Seals: who said a message, on which topic, and after which other one (protocol §12).

    magic 4 | key id 8 | sequence 8, little-endian | signature 64 | the message

The Ed25519 signature covers a context, the topic, the sequence and the message, so that a seal
fits nowhere else; the context begins like nothing else that these keys sign (TLS, certificates).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtide.keys import KEY_ID_BYTES, SIGNATURE_BYTES, is_signed, key_id, public_bytes

MAGIC = b"\xc1fs\x01"
"""0xC1 begins no MessagePack: an unsealed message is told from a sealed one; then the version."""
CONTEXT = b"fedtide seal 1\0"
_HEAD = struct.Struct(f"<{len(MAGIC)}s{KEY_ID_BYTES}sQ{SIGNATURE_BYTES}s")
OVERHEAD_BYTES = _HEAD.size
UNORDERED = 0
"""The sequence of what asks for no order. Where there is one it goes beyond no mark."""
SEQUENCE_MAX = 2**63 - 1
"""So that it is an integer in every language and database."""


class Sealed(NamedTuple):
    """A message in its seal, which nobody has checked yet."""

    key_id: bytes
    sequence: int
    signature: bytes
    message: bytes


def seal(topic: str, message: bytes, key: Ed25519PrivateKey, sequence: int) -> bytes:
    """What is published on `topic`; `sequence` is `UNORDERED`, or higher than any of this key's."""
    signature = key.sign(signed_bytes(topic, sequence, message))
    return _HEAD.pack(MAGIC, key_id(public_bytes(key)), sequence, signature) + message


def open_sealed(raw: bytes) -> Sealed | None:
    """The parts of what was published; None: it is not sealed."""
    if len(raw) < OVERHEAD_BYTES or not raw.startswith(MAGIC):
        return None
    _, key, sequence, signature = _HEAD.unpack_from(raw)
    return Sealed(key, sequence, signature, raw[OVERHEAD_BYTES:])


def is_sealed_by(public: bytes, topic: str, sealed: Sealed) -> bool:
    """Whether the owner of this public key, uint8[32], has said this on this topic."""
    return (
        sealed.key_id == key_id(public)
        and sealed.sequence <= SEQUENCE_MAX
        and is_signed(
            public, sealed.signature, signed_bytes(topic, sealed.sequence, sealed.message)
        )
    )


def signed_bytes(topic: str, sequence: int, message: bytes) -> bytes:
    """What the signature covers; the topic's length tells where it ends."""
    name = topic.encode()
    return CONTEXT + struct.pack("<HQ", len(name), sequence) + name + message
