"""The devices in good standing and their public keys, as the registrar last wrote them.

    {"devices": {NAME: {"key": 64 hexadecimal digits}}}

The file is replaced as a whole. It is looked at before each question, so that who was revoked is
believed no more from the next message on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fedtide.errors import ConfigError
from fedtide.files import read_regular
from fedtide.limits import DEVICES_MAX

_HINT = "the registrar writes it; `fedtide server init` made it"
_BYTES_MAX = 2_000 * DEVICES_MAX
"""Of the file: a device takes some 150, and ten times as many as can be online may be in it."""
_UNREADABLE = (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_log = logging.getLogger(__name__)


class Member(Struct, frozen=True):
    """One device."""

    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class MembersFile(Struct, frozen=True):
    """The whole file."""

    devices: dict[str, Member]


_Stamp = tuple[int, int, int]


class Members:
    """See the module. For one thread: while it reads, another would hear something half new."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            ConfigError: it cannot be read.
        """
        self._path = path
        self._stamp: _Stamp | None = None
        self._keys: dict[str, bytes] = {}
        try:
            self._read(self._stat())
        except _UNREADABLE as exc:
            raise ConfigError(
                f"the list of members {str(path)!r} cannot be read: {_said(exc)}", hint=_HINT
            ) from exc

    @classmethod
    def of(cls, path: Path | None) -> Members | None:
        """Those in this file; None: the configuration names none.

        Raises:
            ConfigError: it cannot be read.
        """
        return None if path is None else cls(path)

    def key(self, device_id: str) -> bytes | None:
        """The public key of a device, uint8[32]; None: it is no member (any more).

        Where the file has become unreadable nobody is a member: whom it revokes is not known.
        """
        try:
            if (stamp := self._stat()) != self._stamp:
                self._read(stamp)
        except _UNREADABLE as exc:
            if self._stamp is not None or self._keys:
                _log.error(
                    "the list of members cannot be read, so nobody is believed: %s", _said(exc)
                )
            self._stamp, self._keys = None, {}
        return self._keys.get(device_id)

    def has_revoked(self, device_id: str) -> bool:
        """Whether it is surely no member (any more): the file can be read, and does not name it."""
        return self.key(device_id) is None and self._stamp is not None

    def _stat(self) -> _Stamp:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _read(self, stamp: _Stamp) -> None:
        """As of `stamp`, which was looked at before: what is replaced meanwhile is read again."""
        raw = read_regular(self._path, _BYTES_MAX)
        devices = msgspec.json.decode(raw, type=MembersFile).devices
        self._keys = {name: bytes.fromhex(member.key) for name, member in devices.items()}
        self._stamp = stamp


def _said(error: Exception) -> str:
    """Without the path, which its reader is told or knows."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
