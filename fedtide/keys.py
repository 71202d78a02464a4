"""Ed25519 keys: PKCS#8 PEM on disk, readable by their owner only; 32 raw bytes everywhere else."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedtide.errors import ConfigError
from fedtide.files import read_regular, write_secret

KEY_ID_BYTES, SIGNATURE_BYTES = 8, 64
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)
"""What `cryptography` raises for bytes that are not what they should be."""


def new_key() -> Ed25519PrivateKey:
    """A key that nobody has had before."""
    return Ed25519PrivateKey.generate()


def public_bytes(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """The public key, uint8[32] (RFC 8032)."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(public: bytes) -> bytes:
    """Which key a seal is by, uint8[8]: the first bytes of the public key's SHA-256."""
    return hashlib.sha256(public).digest()[:KEY_ID_BYTES]


def is_signed(public: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether the owner of this public key has signed exactly this."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def save_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write a private key for its owner alone, from the first byte on.

    Raises:
        StateError: the disk is full, read-only or failing.
    """
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        ConfigError: there is none, others can read it, or it is no Ed25519 key.
    """
    try:
        mode = path.stat().st_mode
        pem = read_regular(path)
    except OSError as exc:
        raise ConfigError(
            f"cannot read the private key {str(path)!r}: {exc.strerror}",
            hint="the folder of an identity holds it, and only its owner may read it",
        ) from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"the private key {str(path)!r} can be read by others (mode {mode & 0o777:03o})",
            hint=f"chmod 600 {str(path)!r}; if somebody may have read it, get a new identity",
        )
    try:
        key = load_pem_private_key(pem, None)
    except UNREADABLE as exc:
        raise ConfigError(
            f"{str(path)!r} is no private key, or damaged",
            hint="it must be PKCS#8 in PEM, unencrypted",
        ) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{str(path)!r} is a private key, but not of Ed25519", hint="every key here is Ed25519"
        )
    return key
