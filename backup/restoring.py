"""Putting a backup back, into empty folders only: everything is verified before anything counts.

What is unpacked lies in a folder `.restoring` until all of it is there and fits together; it is
then moved, the database last; what fails takes all of it back. A coordinator does not start on
blobs without a database, and no server is made anew while `.restoring` lies in a folder of it.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from backup.archive import Contents, Copy, read_contents, read_entries, total_bytes
from backup.progress import Progress
from backup.sources import private_file
from backup.taking import BLOBS_ENTRY, DATABASE_ENTRY
from coordinator.ledger import begin_anew
from coordinator.store import Store
from fedtide.errors import ConfigError, DamagedError, FedtideError, StateError
from fedtide.files import disk_errors_of, make_folder, sync_folder, write_public
from fedtide.ownership import as_owner_of
from registrar.layout import STAGING_NAME

STATE, FILES = "state/", "files/"
TEXT_BYTES_MAX = 1_000_000
SPARE_BYTES = 10_000_000
"""For what a file system and a database take beside their contents."""


def check_backup(path: Path, progress: Progress) -> Contents:
    """Read all of a backup.

    Raises:
        ConfigError: there is no such file.
        DamagedError: it is not what was written.
    """
    with _opened(path) as (file, contents):
        progress.begin("verifying", total_bytes(contents.entries))
        for _, copy in read_entries(file, contents):
            copy(None, progress.moved)
    return contents


def restore_backup(
    path: Path, folders: dict[str, Path], progress: Progress, texts: dict[str, Path] | None = None
) -> Contents:
    """Put the files of a backup whose names begin with a key of `folders` into that folder, and
    those that `texts` names where it says, for every user to read.

    Raises:
        ConfigError: there is no such backup, or a folder is not empty.
        DamagedError: the backup is not what was written.
        StateError: it is of a newer fedtide, or the disk is full or failing; nothing was restored.
    """
    targets = {begin: folder.absolute() for begin, folder in folders.items()}
    for folder in targets.values():
        require_empty(folder)
    with new_folders_removed(*targets.values()), _opened(path) as (file, contents):
        wanted = [entry for entry in contents.entries if entry.name.startswith(tuple(targets))]
        for folder in targets.values():
            _require_room(folder, total_bytes(wanted) + SPARE_BYTES)
        placed: list[Path] = []
        try:
            for folder in targets.values():
                _make_staging(folder)
            progress.begin("restoring", total_bytes(contents.entries))
            read = _unpack(file, contents, targets, texts or {}, progress)
            if STATE in targets and contents.run_id:
                _prepare_state(targets[STATE], contents)
            for name, text in read.items():
                placed.append((texts or {})[name])
                write_public(placed[-1], text)
            for folder in targets.values():
                _move(folder, placed)
        except BaseException:
            _take_back(placed, targets.values())
            raise
    return contents


def _unpack(
    file: BinaryIO,
    contents: Contents,
    targets: dict[str, Path],
    texts: dict[str, Path],
    progress: Progress,
) -> dict[str, bytes]:
    """Into the folders for what is not verified yet; the content of `texts`, by name."""
    read: dict[str, bytes] = {}
    for entry, copy in read_entries(file, contents):
        begin = next((b for b in targets if entry.name.startswith(b)), None)
        if begin is not None:
            _stage(targets[begin], entry.name.removeprefix(begin), copy, progress)
        elif entry.name in texts and entry.size_bytes <= TEXT_BYTES_MAX:
            text = io.BytesIO()
            copy(text, progress.moved)
            read[entry.name] = text.getvalue()
        else:
            copy(None, progress.moved)
    return read


def _stage(folder: Path, name: str, copy: Copy, progress: Progress) -> None:
    staged = folder / STAGING_NAME / name
    with as_owner_of(folder), disk_errors_of(folder):
        make_folder(staged.parent)
        with private_file(staged) as target:
            copy(target, progress.moved)
            target.flush()
            os.fsync(target.fileno())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Contents]]:
    if not path.is_file():
        raise ConfigError(f"there is no backup {str(path)!r}", hint="give a file that was written")
    try:
        with path.open("rb") as file:
            yield file, read_contents(file, path.stat().st_size)
    except DamagedError as exc:
        raise DamagedError(
            f"the backup {str(path)!r} is damaged: {exc.args[0]}", hint=exc.hint
        ) from exc
    except OSError as exc:
        raise StateError(f"the backup {str(path)!r} cannot be read: {exc.strerror}") from exc


def require_empty(folder: Path) -> None:
    """What an unfinished restoration has left is not in the way.

    Raises:
        ConfigError: something is in the folder.
        StateError: it cannot be read.
    """
    if not folder.exists():
        return
    with disk_errors_of(folder):
        there = sorted(p.name for p in folder.iterdir() if p.name != STAGING_NAME)
    if there:
        raise ConfigError(
            f"{str(folder)!r} is not empty: {there[0]!r} is in it",
            hint="move away what is there, or name another folder; nothing is overwritten",
        )


def _require_room(folder: Path, needed: int) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StateError(
            f"{needed / 1e6:,.0f} MB are needed in {str(there)!r}, {free / 1e6:,.0f} MB are free",
            hint="free space on this disk, or name a folder on another",
            no_room=True,
        )


@contextmanager
def new_folders_removed(*folders: Path) -> Iterator[None]:
    """If the body fails: those that were not there before, with the folders above them, as far as
    they are empty."""
    new = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    try:
        yield
    except BaseException:
        for path in sorted(new, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # something is in it, or it was not made
                path.rmdir()
        raise


def _make_staging(folder: Path) -> None:
    with as_owner_of(folder), disk_errors_of(folder):
        make_folder(folder)
        shutil.rmtree(folder / STAGING_NAME, ignore_errors=True)
        make_folder(folder / STAGING_NAME)


def _prepare_state(folder: Path, contents: Contents) -> None:
    """Whether a coordinator can go on with it; bring it up to date, as another run."""
    names = {entry.name for entry in contents.entries}
    if DATABASE_ENTRY not in names:
        raise DamagedError("there is no database in it")
    with as_owner_of(folder):
        try:
            store = Store(folder / STAGING_NAME)
            try:
                store.check()
                needed = [model.ref.digest for model in store.models()] + store.digests_waiting()
                gone = [digest for digest in needed if f"{BLOBS_ENTRY}/{digest}" not in names]
                if gone or store.model(store.load_state().model_version) is None:
                    raise DamagedError(
                        f"{gone[0][:12] if gone else 'the newest model'} is not in it"
                    )
                begin_anew(store)
            finally:
                store.close()
        except FedtideError as exc:
            told = str(exc.args[0]).replace(str(folder / STAGING_NAME), "the backup")
            raise type(exc)(told, hint=exc.hint) from exc


def _move(folder: Path, placed: list[Path]) -> None:
    staging = folder / STAGING_NAME
    with as_owner_of(folder), disk_errors_of(folder):
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "coordinator.db"):
            if path.is_dir():
                for inner in (path, *path.rglob("*")):
                    if inner.is_dir():
                        sync_folder(inner)
            placed.append(folder / path.name)
            path.rename(placed[-1])
        staging.rmdir()
        sync_folder(folder)


def _take_back(placed: list[Path], folders: Iterable[Path]) -> None:
    """As far as the disk lets us. Where something was placed, nothing was before."""
    for path in (*reversed(placed), *(folder / STAGING_NAME for folder in folders)):
        if path.parent.exists():
            with suppress(OSError), as_owner_of(path.parent):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
