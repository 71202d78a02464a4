"""The key set: which keys speak for the coordinator, sealed by the authority's key, versioned.

One form, on disk and on the wire: the sealed bytes of a `KeySet` on the federation's topic `keys`,
with its version as the seal's sequence. Whoever holds the authority's public key can check it.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtide.messages import Envelope, KeySet, decode, encode
from fedtide.seal import is_sealed_by, open_sealed, seal
from fedtide.topics import Topics


def seal_key_set(topics: Topics, key_set: KeySet, authority: Ed25519PrivateKey) -> bytes:
    """The bytes of a key set, for the file and for the topic."""
    message = encode(key_set, f"{key_set.version}")
    return seal(topics.keys, message, authority, key_set.version)


def open_key_set(topics: Topics, raw: bytes, authority: bytes) -> KeySet | str:
    """The key set that the authority, uint8[32], has sealed; else why it is none."""
    sealed = open_sealed(raw)
    if sealed is None:
        return "it is not sealed"
    if not is_sealed_by(authority, topics.keys, sealed):
        return "it is not sealed by the authority of this federation"
    envelope = decode(sealed.message)
    if not isinstance(envelope, Envelope) or not isinstance(envelope.body, KeySet):
        return "it is no key set"
    if envelope.body.version != sealed.sequence:
        return "its version is not the one that was sealed"
    return envelope.body
