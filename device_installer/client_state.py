"""The client's saved state, which is not root's: what is read or written there is so with the
rights of the client's user, whose links would else lead root wherever a client that was broken
into likes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from device_installer.layout import Layout
from device_installer.telling import Refused

_NAMES = "session.0", "session.1"
"""Whose format a version may change (`edge_client.saved_session`); the rest is named by content."""
_BYTES_MAX = 1 << 24
_AS_THEY_ARE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No link is followed, no pipe waited for."""


def owner_of(layout: Layout) -> tuple[int, int] | None:
    """Ids of the client's user and group, for root to become; None if there is nobody but us."""
    if os.geteuid() != 0:
        return None
    # The folder's name stands in one of root's; what stands in the folder is its owner's choice.
    for look, folder in ((os.stat, layout.state.parent), (os.lstat, layout.state)):
        with suppress(FileNotFoundError):
            found = look(folder)
            if found.st_uid:
                return found.st_uid, found.st_gid
    return None


def keep(layout: Layout, folder: Path) -> None:
    """Copy the saved session into a folder of root's.

    Raises:
        Refused: something else stands in a session's place.
        OSError: the disk refuses, or the state folder is none.
    """
    found = {}
    with _as_owner(layout), suppress(FileNotFoundError), _opened(layout.state) as state:
        for name in _NAMES:
            with suppress(FileNotFoundError):
                found[name] = _read(state, name)
    with _opened(folder) as kept:
        for name, content in found.items():
            _write(kept, name, content)


def give_back(folder: Path, layout: Layout) -> None:
    """Leave the client with the saved session that was kept.

    Raises:
        OSError: the disk refuses, or what is there cannot be replaced.
    """
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in _NAMES}
    with _as_owner(layout), _opened(layout.state) as state:
        for name in _NAMES:
            if name in found:
                _write(state, name, found[name])
            else:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=state)


@contextmanager
def _as_owner(layout: Layout) -> Iterator[None]:
    owner = owner_of(layout)
    if owner is None:
        yield
        return
    before = os.getegid(), os.getgroups()
    try:
        os.setgroups([])
        os.setegid(owner[1])
        os.seteuid(owner[0])
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[0])
        os.setgroups(before[1])


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _AS_THEY_ARE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(folder: int, name: str) -> bytes:
    if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        with os.fdopen(os.open(name, os.O_RDONLY | _AS_THEY_ARE, dir_fd=folder), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it may have been exchanged
                content = file.read(_BYTES_MAX + 1)
                if len(content) <= _BYTES_MAX:
                    return content
    raise Refused(
        f"{name!r} in the state folder is nothing that a client saves: no file, or too large",
        "nothing was changed; somebody else has written there: see what it is, and remove it",
        8,
    )


def _write(folder: int, name: str, content: bytes) -> None:
    """Replace a file, whatever it is now; it is there as a whole or not at all."""
    beside = f".{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(beside, dir_fd=folder)
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _AS_THEY_ARE
    with os.fdopen(os.open(beside, new, 0o600, dir_fd=folder), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
