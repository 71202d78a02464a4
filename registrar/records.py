"""What the registry is about: devices, claims and certificates, and which names they may have."""

from __future__ import annotations

from typing import Literal

from cryptography import x509
from cryptography.x509.oid import NameOID
from msgspec import Struct

from fedtide.errors import ConfigError
from fedtide.topics import (
    CLAIM_PREFIX,
    DOCTOR_PREFIX,
    RESERVED_NAMES,
    is_device_name,
    is_identifier,
)

Standing = Literal["invited", "member", "revoked"]


class Device(Struct, frozen=True):
    """A device as the registry knows it."""

    name: str
    standing: Standing
    key: bytes | None
    """Its raw public key, uint8[32], from its joining on."""
    new_name: str | None
    """What it will be called from its next certificate on."""
    changed_at_ms: int
    """When its standing or its name changed last."""


class Claim(Struct, frozen=True):
    """A one-time permission to become a device."""

    claim_id: str
    device: str
    key: bytes
    """The claim's own raw public key, uint8[32]: it signs the request to join."""
    expires_at_ms: int
    used_at_ms: int | None


class Certificate(Struct, frozen=True):
    """A certificate of a device, of a claim on it, or of a part of the server."""

    serial: int
    name: str
    """Its common name: who its holder is at the broker."""
    device: str | None
    """None: it is of one of the server's own parts."""
    pem: bytes
    issued_at_ms: int
    not_after_ms: int
    revoked_at_ms: int | None


class RefusedError(ConfigError):
    """The registry does not allow this; the message says why, for a person."""


def check_name(name: str) -> None:
    """Whether a device may be called so.

    Raises:
        RefusedError: why not.
    """
    if not is_identifier(name):
        raise RefusedError(
            f"{name!r} cannot be a device's name",
            hint="a name of letters, digits, '.', '_' or '-', at most 64, no sign first",
        )
    if not is_device_name(name) or name.startswith(DOCTOR_PREFIX):
        raise RefusedError(
            f"the name {name!r} is reserved",
            hint=f"{', '.join(sorted(RESERVED_NAMES))}, {CLAIM_PREFIX}..., {DOCTOR_PREFIX}... are "
            "the server's own",
        )


def common_name(certificate: x509.Certificate) -> str:
    """Whose certificate it is."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
