"""The join code: one line that carries everything a new device needs to join, once.

    fedtide-join-1.BASE64URL

BASE64URL, without padding, is of: length of the rest after the checksum (2 bytes, little-endian),
CRC-32 (4 bytes), MessagePack of `JoinCode`. The length tells a code that was cut off from one with
a typing error. It holds a private key (of the claim, never the device's own): whoever has the code
can join once in the device's name, until it expires.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from fedtide.errors import AS_ROOT, ConfigError
from fedtide.messages import Identifier
from fedtide.topics import CLAIM_PREFIX

VERSION = 1
CODE_CHARS_MAX = 8192
"""Of a code; ours have about 1,300."""

_NAME = "fedtide-join-"
PREFIX = f"{_NAME}{VERSION}."
"""Of a code of this version."""
_HINT = (
    "copy it again, whole: one line that begins with "
    f"{PREFIX}; or make a new one on the server: fedtide device add NAME"
)


class JoinCode(Struct, frozen=True, array_like=True):
    """What a join code says. X.509 certificates are DER."""

    federation: Identifier
    host: Annotated[str, Meta(min_length=1, max_length=255)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    ca: Annotated[bytes, Meta(max_length=2048)]
    """The federation's authority: the one root of trust."""
    certificate: Annotated[bytes, Meta(max_length=2048)]
    """Of the claim: it admits to the broker, for nothing but joining."""
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """The claim's raw Ed25519 private key."""

    @property
    def claim(self) -> str:
        """The claim's name, `join-...`."""
        names = _certificate(self.certificate).subject.get_attributes_for_oid(
            x509.NameOID.COMMON_NAME
        )
        return str(names[0].value) if names else ""

    @property
    def made_at(self) -> datetime:
        """Or somewhat earlier: no clock that has been set shows a time before it."""
        return _certificate(self.certificate).not_valid_before_utc

    @property
    def expires_at(self) -> datetime:
        """From then on it is refused."""
        return _certificate(self.certificate).not_valid_after_utc


def write_join_code(code: JoinCode) -> str:
    """The line, without a line break."""
    body = msgspec.msgpack.encode(code)
    raw = len(body).to_bytes(2, "little") + zlib.crc32(body).to_bytes(4, "little") + body
    return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def parse_join_code(text: str) -> JoinCode:
    """What the line says; white space anywhere in it, as pasting leaves it, is ignored.

    Raises:
        ConfigError: it is no join code, cut off, mistyped, or of another version.
    """
    word = "".join(text.split()).strip("\"'`")
    if not word.startswith(PREFIX):
        raise _not_ours(word)
    if len(word) > CODE_CHARS_MAX:
        raise ConfigError(f"this is longer than a join code: {len(word):,} characters", hint=_HINT)
    digits = word.removeprefix(PREFIX)
    strange = re.search(r"[^A-Za-z0-9_-]", digits)
    if strange is not None:
        raise ConfigError(
            f"the join code has a character that belongs to none: {strange.group()!r}, the "
            f"{len(PREFIX) + strange.start() + 1}th",
            hint=_HINT,
        )
    body = _checked_body(digits)
    try:
        code = msgspec.msgpack.decode(body, type=JoinCode)
        fits = (
            Ed25519PrivateKey.from_private_bytes(code.key).public_key()
            == _certificate(code.certificate).public_key()
        )
        _certificate(code.ca)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as exc:
        raise ConfigError(f"the join code is damaged: {exc}", hint=_HINT) from exc
    if not fits or not code.claim.startswith(CLAIM_PREFIX):
        raise ConfigError("the join code's key and certificate are of different claims", hint=_HINT)
    return code


def read_join_code(given: str) -> JoinCode:
    """The code itself, the path of a join file, or `-`: standard input.

    Raises:
        ConfigError: there is no such file, or nothing of use in it.
    """
    word = given.strip()
    if word == "-":
        return parse_join_code(sys.stdin.read(2 * CODE_CHARS_MAX))
    if word.startswith(_NAME) and "/" not in word:
        return parse_join_code(word)
    path = Path(given)
    try:
        with path.open(encoding="utf-8") as file:
            return parse_join_code(file.read(2 * CODE_CHARS_MAX))
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{given!r} is no join file", hint=_HINT) from exc
    except PermissionError as exc:
        raise ConfigError(
            f"the join file {given!r} is not yours to read",
            hint=f"let this user read it (chown), or {AS_ROOT}",
        ) from exc
    except (OSError, ValueError) as exc:
        shown = given if len(given) <= 60 else given[:60] + "…"
        raise ConfigError(
            f"{shown!r} is neither a join code nor a join file that can be read: "
            f"{getattr(exc, 'strerror', None) or exc}",
            hint=_HINT,
        ) from exc


def clock_trouble(code: JoinCode, now: datetime | None = None) -> str | None:
    """Why this machine's clock cannot judge the code; None: it can, and the code is still good.

    A Raspberry Pi has no clock of its own: it wakes in the past until the network tells it the
    time. That is no fault of the code.

    Raises:
        ConfigError: it has expired.
    """
    now = now or datetime.now(UTC)
    if now < code.made_at:
        return (
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, which is before the join code "
            f"was made ({code.made_at:%Y-%m-%d}): it has not been set"
        )
    if now >= code.expires_at:
        raise ConfigError(
            f"the join code has expired: it was good until {code.expires_at:%Y-%m-%d %H:%M} UTC, "
            f"and this machine's clock says {now:%Y-%m-%d %H:%M} UTC",
            hint="make a new one on the server: fedtide device add NAME; or correct the clock here",
        )
    return None


def _checked_body(digits: str) -> bytes:
    # One digit more than whole bytes need is what is left of a byte that was cut off.
    whole = digits[: len(digits) - (len(digits) % 4 == 1)]
    try:
        raw = base64.urlsafe_b64decode(whole + "=" * (-len(whole) % 4))
    except binascii.Error as exc:
        raise ConfigError(f"the join code is damaged: {exc}", hint=_HINT) from exc
    length, checksum, body = raw[:2], raw[2:6], raw[6:]
    wanted = int.from_bytes(length, "little")
    if len(raw) < 6 or len(body) < wanted:
        raise ConfigError(
            f"the join code was cut off: {len(PREFIX) + len(digits):,} characters are there"
            + (f" of {len(PREFIX) + -(-(wanted + 6) * 4 // 3):,}" if len(raw) >= 6 else ""),
            hint=_HINT,
        )
    if len(body) > wanted:
        raise ConfigError("the join code is followed by something else", hint=_HINT)
    if zlib.crc32(body) != int.from_bytes(checksum, "little"):
        raise ConfigError("the join code was changed: its checksum is wrong", hint=_HINT)
    return body


def _not_ours(word: str) -> ConfigError:
    other = re.match(rf"{_NAME}(\d+)\.", word)
    if other is not None:
        return ConfigError(
            f"the join code is of version {other.group(1)}, and this fedtide reads version "
            f"{VERSION}",
            hint="update fedtide on this device to the server's version",
        )
    if not word:
        return ConfigError("there is no join code: it is empty", hint=_HINT)
    if PREFIX.startswith(word):
        return ConfigError("the join code was cut off", hint=_HINT)
    shown = word if len(word) <= 40 else word[:40] + "…"
    return ConfigError(f"{shown!r} is no join code", hint=_HINT)


def _certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)
