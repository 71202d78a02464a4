"""What follows from the registry, in one place: derived from it as a whole, however often.

The list of members (the coordinator believes nobody else), the broker's access list and its list of
revoked certificates. Each is written under the registry's lock, so that of two who write the last
one has seen everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
from cryptography import x509

from fedtide.files import (
    NoFileOfOursError,
    disk_errors_of,
    read_regular,
    write_public,
    write_secret,
)
from fedtide.identity import KEY_NAME
from fedtide.topics import CLAIM_PREFIX, RESERVED_NAMES, is_device_name, is_identifier
from registrar.authority import Authority, Revoked
from registrar.broker_files import access_list
from registrar.records import Certificate
from registrar.registry import Registry

ACL_NAME, CRL_NAME = "acl", "revoked.pem"
_LIST_BYTES_MAX = 100_000_000
"""The access list of 10,000 devices has some millions."""


def write_members(registry: Registry, path: Path) -> None:
    """Replace the list of members, if it says anything else than the registry.

    Raises:
        StateError: the disk is full, read-only or failing.
    """
    with registry.still():
        devices = {
            device.name: {"key": device.key.hex()}
            for device in registry.devices()
            if device.standing == "member" and device.key is not None
        }
        _write_if_new(path, msgspec.json.encode({"devices": devices}) + b"\n")


def write_access(
    registry: Registry,
    authority: Authority,
    folder: Path,
    federation: str,
    now_ms: int,
) -> list[str]:
    """Replace the broker's access list and list of revoked certificates where they say anything
    else than the registry. The names that lose their rights by it: their connections must end.

    Raises:
        StateError: the disk is full, read-only or failing.
    """
    with registry.still():
        certificates = registry.certificates()
        valid = [c for c in certificates if c.revoked_at_ms is None]
        claims = {
            c.name for c in valid if c.name.startswith(CLAIM_PREFIX) and c.not_after_ms > now_ms
        }
        # A device uses its former name until it has the certificate of its new one.
        devices = {c.name for c in valid if is_device_name(c.name)}
        for device in registry.devices():
            if device.standing != "revoked":
                devices.update(filter(None, (device.name, device.new_name)))
        before = _named(folder)
        # Also what is over: by a wrong clock it may not be.
        revoked = [c for c in certificates if c.revoked_at_ms is not None]
        _write_revoked(folder / CRL_NAME, authority, revoked, now_ms)
        rules = access_list(federation, devices, claims).encode()
        # Mosquitto means to refuse, one day, a list that is another user's, or open to all.
        _write_if_new(folder / ACL_NAME, rules, partial(write_secret, owned_like=folder / KEY_NAME))
    return sorted(before - devices - claims)


def names_of(registry: Registry, device: str) -> list[str]:
    """Every name under which the broker may know a device: its own first, those that it had and no
    other member has by now, and of claims on it."""
    others = {
        other.name
        for other in registry.devices()
        if other.standing == "member" and other.name != device
    }
    certificates = reversed(registry.certificates(device))
    return list(dict.fromkeys((device, *(c.name for c in certificates if c.name not in others))))


def read_list(path: Path) -> bytes | None:
    """Of a list that we have written; None: there is none, and what else may be there is replaced.

    Raises:
        StateError: it cannot be read.
    """
    with disk_errors_of(path.parent):
        try:
            return read_regular(path, _LIST_BYTES_MAX)
        except (FileNotFoundError, NoFileOfOursError):
            return None


def _named(folder: Path) -> set[str]:
    """The devices and claims that the access list has rules for."""
    lines = _text(folder / ACL_NAME).splitlines()
    names = {line.removeprefix("user ") for line in lines if line.startswith("user ")}
    return set(filter(is_identifier, names)) - RESERVED_NAMES


def _write_revoked(
    path: Path, authority: Authority, revoked: Iterable[Certificate], now_ms: int
) -> None:
    """A list says when it was made, so an equal one is told by what it lists."""
    entries = [Revoked(c.serial, c.revoked_at_ms or now_ms) for c in revoked]
    if _listed(path, authority) != {entry.serial for entry in entries}:
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        write_public(path, authority.revocation_list(entries, now))


def _listed(path: Path, authority: Authority) -> set[int] | None:
    """The serial numbers on the list; None: it is none of this authority's."""
    try:
        crl = x509.load_pem_x509_crl(_text(path).encode())
        ours = crl.is_signature_valid(authority.key.public_key())
    except (ValueError, TypeError):
        return None
    return {entry.serial_number for entry in crl} if ours else None


def _text(path: Path) -> str:
    return (read_list(path) or b"").decode(errors="replace")


def _write_if_new(
    path: Path, content: bytes, write: Callable[[Path, bytes], None] = write_public
) -> None:
    if read_list(path) != content:
        write(path, content)
