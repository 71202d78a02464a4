"""Results as JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from fedtide.errors import DamagedError
from fedtide.files import disk_errors_of, write_atomically

T = TypeVar("T")


def read_json(path: Path, kind: type[T], hint: str) -> T | None:
    """None: there is no such file. `hint`: what to do about a damaged one.

    Raises:
        DamagedError: it cannot be read as what it is.
        StateError: the disk fails.
    """
    with disk_errors_of(path.parent):
        if not path.exists():
            return None
        content = path.read_bytes()
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise DamagedError(f"{str(path)!r} is damaged: {exc}", hint=hint) from exc


def write_json(path: Path, value: object) -> None:
    """For people to read, too.

    Raises:
        StateError: the disk is full or failing.
    """
    content = msgspec.json.format(msgspec.json.encode(value), indent=1)
    write_atomically(path, content + b"\n")
