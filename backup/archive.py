"""The format of a backup: a tar file of regular files, whose first member names all that follow.

That one has the name, size and SHA-256 of each, and its own SHA-256 in its name; they come in this
order, and nothing else does. So a file is read without trust in it: no compression that could
swell, no links, one form of header, and a size that has to add up to the file's own. `tar xf` reads
it as well.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta, Struct

from fedtide.bundle import sha256_hex
from fedtide.errors import DamagedError
from fedtide.manifest import Sha256

CONTENTS_BYTES_MAX = 100_000_000
"""Half a million files."""
BLOCK = tarfile.BLOCKSIZE
PIECE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
"""Nothing that leads elsewhere: no root, no `..`, nothing hidden."""
_NAME_CHARS_MAX = 99
"""Of a tar header."""
_HINT = "copy it again, whole, or take another backup: this one cannot be restored"
_OTHER_HINT = "give a file that `fedtide server backup` wrote"

Moved = Callable[[int], None]
"""Called with the number of bytes that were copied."""
Copy = Callable[[BinaryIO | None, Moved], None]
"""Copies the content of an entry; None: only checks it."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One file."""

    name: Annotated[str, Meta(max_length=_NAME_CHARS_MAX)]
    size_bytes: Annotated[int, Meta(ge=0, lt=2**53)]
    sha256: Sha256


class Contents(Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds, and of what it is."""

    format: Literal[1]
    version: str
    """Of fedtide."""
    made_at_ms: int
    federation: str
    run_id: str
    """Empty: its coordinator had not run yet."""
    model_version: int
    bundle: str
    """Digest; empty likewise."""
    left_out: tuple[str, ...]
    """Updates that were gone or damaged before."""
    entries: tuple[Entry, ...]


def contents_name(raw: bytes) -> str:
    """Of the first member."""
    return f"contents-{sha256_hex(raw)}.json"


def is_entry_name(name: str) -> bool:
    """Whether a file of this name may be in a backup."""
    return len(name) <= _NAME_CHARS_MAX and _NAME.fullmatch(name) is not None


def archive_bytes(head_bytes: int, entries: Iterable[Entry]) -> int:
    """How long a backup is, with a first member of this length."""
    sizes = (head_bytes, *(entry.size_bytes for entry in entries))
    return sum(BLOCK + _padded(size) for size in sizes) + 2 * BLOCK


def write_archive(
    file: BinaryIO, contents: Contents, opened: Callable[[Entry], BinaryIO], moved: Moved
) -> None:
    """Write it; `opened` gives each entry's content.

    Raises:
        DamagedError: a content is not what its entry says; its name is the error's `args[0]`.
        OSError: the disk is full, or one of both is failing.
    """
    head = msgspec.json.encode(contents)
    name = contents_name(head)
    _write_member(file, Entry(name, len(head), sha256_hex(head)), io.BytesIO(head), moved)
    for entry in contents.entries:
        with opened(entry) as source:
            _write_member(file, entry, source, moved)
    file.write(bytes(2 * BLOCK))


def _write_member(file: BinaryIO, entry: Entry, source: BinaryIO, moved: Moved) -> None:
    file.write(_header(entry.name, entry.size_bytes))
    digest = hashlib.sha256()
    try:
        for piece in _pieces(source, entry.size_bytes):
            digest.update(piece)
            file.write(piece)
            moved(len(piece))
    except DamagedError as exc:
        raise DamagedError(entry.name) from exc
    if source.read(1) or digest.hexdigest() != entry.sha256:
        raise DamagedError(entry.name)
    file.write(bytes(_padded(entry.size_bytes) - entry.size_bytes))


def read_contents(file: BinaryIO, file_bytes: int) -> Contents:
    """What a backup says of itself; `file` then stands before its first entry.

    Raises:
        DamagedError: it is no backup, or not the whole of one.
    """
    name, size = _read_header(file)
    if size > min(CONTENTS_BYTES_MAX, file_bytes):
        raise DamagedError(
            f"it has {file_bytes:,} bytes, and says that {size:,} of them, of at most "
            f"{CONTENTS_BYTES_MAX:,}, are its list of contents",
            hint=_HINT,
        )
    raw = b"".join(_pieces(file, size))
    _skip_padding(file, size)
    if name != contents_name(raw):
        raise DamagedError(
            "it is no backup of fedtide, or its list of contents is damaged", hint=_OTHER_HINT
        )
    try:
        contents = msgspec.json.decode(raw, type=Contents)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DamagedError(f"its contents cannot be read: {exc}", hint=_HINT) from exc
    names = [entry.name for entry in contents.entries]
    odd = next((name for name in names if not is_entry_name(name)), None)
    if odd is not None or len(set(names)) != len(names):
        raise DamagedError(f"a name in it is none: {odd or 'one comes twice'!r}", hint=_HINT)
    if {str(folder) for name in names for folder in PurePosixPath(name).parents} & set(names):
        raise DamagedError("one of its files is a folder of others", hint=_HINT)
    expected = archive_bytes(size, contents.entries)
    if expected != file_bytes:
        raise DamagedError(f"it has {file_bytes:,} bytes, expected {expected:,}", hint=_HINT)
    return contents


def read_entries(file: BinaryIO, contents: Contents) -> Iterator[tuple[Entry, Copy]]:
    """Each entry, and what copies it; call that before the next."""
    for entry in contents.entries:

        def copy(target: BinaryIO | None, moved: Moved, entry: Entry = entry) -> None:
            if _read_header(file) != (entry.name, entry.size_bytes):
                raise DamagedError(f"{entry.name!r} is expected in it, and something else is there")
            digest = hashlib.sha256()
            for piece in _pieces(file, entry.size_bytes):
                digest.update(piece)
                if target is not None:
                    target.write(piece)
                moved(len(piece))
            if digest.hexdigest() != entry.sha256:
                raise DamagedError(f"{entry.name!r} in it is damaged", hint=_HINT)
            _skip_padding(file, entry.size_bytes)

        yield entry, copy
    if any(file.read()):
        raise DamagedError("there is something behind its files", hint=_HINT)


def total_bytes(entries: Iterable[Entry]) -> int:
    """Of their contents."""
    return sum(entry.size_bytes for entry in entries)


def sha256_of(source: BinaryIO) -> tuple[int, str]:
    """Size and digest of what is left of a file."""
    digest, size = hashlib.sha256(), 0
    while piece := source.read(PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def _read_header(file: BinaryIO) -> tuple[str, int]:
    """Name and size of the next member."""
    raw = file.read(BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(raw, "utf-8", "surrogateescape")
        ours = raw == _header(info.name, info.size)
    except (tarfile.HeaderError, ValueError) as exc:
        raise DamagedError(f"it is no backup of fedtide: {exc}", hint=_OTHER_HINT) from exc
    if not ours:
        raise DamagedError(f"a header in it is not of ours, for {info.name[:100]!r}", hint=_HINT)
    return info.name, info.size


def _header(name: str, size: int) -> bytes:
    """The one form that a member's header has: plain, of nobody, from 1970."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


def _pieces(source: BinaryIO, size: int) -> Iterator[bytes]:
    """`size` bytes; DamagedError if there are fewer."""
    while size:
        piece = source.read(min(size, PIECE_BYTES))
        if not piece:
            raise DamagedError("it ends too early", hint=_HINT)
        size -= len(piece)
        yield piece


def _skip_padding(file: BinaryIO, size: int) -> None:
    if any(file.read(_padded(size) - size)):
        raise DamagedError("there is something between its files", hint=_HINT)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
