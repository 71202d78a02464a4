"""Files that survive a power cut: write beside, fsync, rename, fsync the folder.

A failed fsync is never retried: the kernel may have dropped the pages (it raises, the program
stops and starts again from the last good state).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fedtide.errors import AS_ROOT, ConfigError, StateError
from fedtide.failpoints import reach

_UNFINISHED = ".new"
FILE_BYTES_MAX = 1_000_000
"""Of a key, a certificate, a key set, a number; the largest has some hundred."""


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path`, by `parts` one after another; after a crash it holds the old content or the
    new, never a mix. Nobody else can write it, whatever the umask.

    Raises:
        StateError: the disk is full, read-only or failing; the old content is intact.
    """
    _write(path, parts, 0o644)


def write_secret(path: Path, content: bytes, owned_like: Path | None = None) -> None:
    """Like `write_atomically`, and nobody but its owner can ever read it: us, or whoever owns the
    file `owned_like`.

    Raises:
        StateError: as above.
    """

    def give(descriptor: int) -> None:
        if owned_like is not None:
            owner = owned_like.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    _write(path, (content,), 0o600, give)


def write_public(path: Path, content: bytes) -> None:
    """Like `write_atomically`, and every user can read it, whatever the umask of the service that
    writes it: for what another service reads.

    Raises:
        StateError: as above.
    """
    _write(path, (content,), 0o644, lambda descriptor: os.fchmod(descriptor, 0o644))


def _write(
    path: Path,
    parts: tuple[bytes | memoryview, ...],
    mode: int,
    prepare: Callable[[int], None] | None = None,
) -> None:
    """With at most the permissions `mode` from the first byte on; `prepare` gets the descriptor
    before that."""
    beside = path.with_name(f".{path.name}{_UNFINISHED}")
    with disk_errors_of(path.parent):
        try:
            reach("disk: write")
            beside.unlink(missing_ok=True)  # somebody may have left it, open to all
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                if prepare is not None:
                    prepare(descriptor)
                for part in parts:
                    file.write(part)
                file.flush()
                reach("disk: sync")
                os.fsync(descriptor)
            reach("disk: rename")
            beside.replace(path)
            sync_folder(path.parent)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def is_unfinished(path: Path) -> bool:
    """Whether the file is what a write that was cut short has left behind."""
    return path.name.startswith(".") and path.name.endswith(_UNFINISHED)


def read_checked(path: Path) -> bytes:
    """The content of a file that has a checksum: empty, hence damaged, if the disk cannot read it.

    Raises:
        FileNotFoundError: there is no such file.
        StateError: it may not be read.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    with disk_errors_of(path.parent):
        try:
            with open_regular(path) as file:
                return file.read()
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            return b""


class NoFileOfOursError(OSError):
    """What is there is nothing that fedtide made: a pipe, a device, a folder, too large."""


def open_regular(path: Path, *, links: bool = True) -> BinaryIO:
    """Open a file to read it, and nothing else: at a pipe that somebody has put in its place we
    would wait for ever. `links`: whether it may be a link.

    Raises:
        NoFileOfOursError: it is something else.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        raise NoFileOfOursError(errno.ELOOP, "it is a link", str(path)) from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoFileOfOursError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, bytes_max: int = FILE_BYTES_MAX, *, links: bool = True) -> bytes:
    """The content of a file that somebody else may have put there (`open_regular`).

    Raises:
        NoFileOfOursError: it is something else, or has more than `bytes_max`.
        OSError: it cannot be read, or not now: a driver's may say so.
    """
    with open_regular(path, links=links) as file:
        content = cast("bytes | None", file.read(bytes_max + 1))
    if content is None:  # so Python tells EAGAIN
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
    if len(content) > bytes_max:
        raise NoFileOfOursError(errno.EFBIG, f"it has more than {bytes_max:,} bytes", str(path))
    return content


def require_database(path: Path) -> None:
    """Make sure that SQLite, which opens whatever is there, finds files.

    Raises:
        NoFileOfOursError: it would find something else.
        OSError: the folder cannot be looked into.
    """
    for name in (path.name, *(f"{path.name}-{more}" for more in ("journal", "wal", "shm"))):
        beside = path.with_name(name)
        if beside.exists() and not beside.is_file():
            raise NoFileOfOursError(errno.EINVAL, "it is no regular file", str(beside))


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder for its owner alone, durably: what is synced in a folder that a power cut
    takes away is lost with it.

    Raises:
        StateError: the disk refuses.
    """
    with disk_errors_of(folder):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            sync_folder(path.parent)


def require_place(out: Path) -> None:
    """Make sure that the file of `--out` can be made, before an hour's work; folders that are
    missing are a typing error rather than a wish.

    Raises:
        ConfigError: its folder is not there, or something that is no file is.
    """
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {str(out)!r}: there is no such folder", hint="make it first")
    if out.exists() and not out.is_file():
        raise ConfigError(f"--out {str(out)!r} is no file", hint="name a file in a folder")


def remove_tree(path: Path) -> None:
    """Remove what is there: a folder with everything in it; a link itself, not what it leads to.

    Raises:
        StateError: the disk refuses.
    """
    with disk_errors_of(path.parent):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def disk_errors_of(folder: Path) -> Iterator[None]:
    """Turn OSError, of reading or writing, into a StateError that names the folder and the way
    out."""
    try:
        yield
    except NoFileOfOursError as exc:
        raise StateError(
            f"cannot use {str(exc.filename)!r}: {exc.strerror}",
            hint="fedtide did not make that: find out who did, and put the file itself there",
        ) from exc
    except OSError as exc:
        hints = {
            errno.ENOSPC: "free space on this disk, then start again; nothing was lost",
            errno.EDQUOT: "raise the quota, then start again; nothing was lost",
            errno.EROFS: "mount the disk writable, then start again",
            errno.ENOENT: "correct the path; or find out who has removed what was there",
            errno.ENOTDIR: "correct the path: a part of it is a file",
            errno.EACCES: f"let this user read and write in the folder, or {AS_ROOT}",
        }
        raise StateError(
            f"cannot use the folder {str(folder)!r}: {exc.strerror or exc}",
            hint=hints.get(exc.errno or 0),
            no_room=exc.errno in (errno.ENOSPC, errno.EDQUOT),
        ) from exc


@contextmanager
def locked(folder: Path, owner: str) -> Iterator[None]:
    """Hold `folder` for this process alone.

    Raises:
        StateError: another process holds it.
    """
    with disk_errors_of(folder):
        make_folder(folder)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise StateError(
                f"the folder {str(folder)!r} is in use by another {owner}",
                hint="stop the other process, or give this one a folder of its own",
            ) from exc
        yield
    finally:
        os.close(descriptor)
