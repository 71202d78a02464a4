"""What follows from the registry, in one place: derived from it as a whole, however often.

The list of members (the coordinator believes nobody else), the broker's access list and its list of
revoked certificates. Each is written under the registry's lock, so that of two who write the last
one has seen everything.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from fedtide.files import disk_errors_of, write_public
from registrar.registry import Registry


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


def _write_if_new(path: Path, content: bytes) -> bool:
    """Whether it had to be written."""
    with disk_errors_of(path.parent):
        if path.exists() and path.read_bytes() == content:
            return False
    write_public(path, content)
    return True
