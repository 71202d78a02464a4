"""Taking a backup of a running coordinator, without stopping it.

The database is read at one moment; the blobs that it names then are held by hard links until they
are copied, whatever the coordinator removes meanwhile. So both fit together, and a round goes on
all the time: SQLite's readers and writer do not wait for each other.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backup.archive import (
    Contents,
    Entry,
    is_entry_name,
    read_contents,
    read_entries,
    sha256_of,
    total_bytes,
    write_archive,
)
from backup.progress import Progress
from coordinator.config import CoordinatorConfig
from coordinator.figures import BACKUP_NAME
from coordinator.store import Store
from fedtide import __version__
from fedtide.bundle import open_bundle_dir, sha256_hex
from fedtide.errors import BundleError, DamagedError, StateError
from fedtide.files import disk_errors_of, locked, make_folder, sync_folder
from fedtide.manifest import MANIFEST_NAME
from fedtide.ownership import as_owner_of

HOLD_NAME = "backup"
"""In the state folder, while a backup is taken: links to the blobs that it holds."""
DATABASE_ENTRY, BLOBS_ENTRY = "state/coordinator.db", "state/blobs"
_DOCTOR = "run `fedtide doctor` with the same configuration"


class Source(NamedTuple):
    """A file of the backup, and where its content comes from."""

    entry: Entry
    open: Callable[[], BinaryIO]


def of_bytes(name: str, content: bytes) -> Source:
    """A source in memory."""
    return Source(Entry(name, len(content), sha256_hex(content)), lambda: io.BytesIO(content))


def of_file(name: str, path: Path) -> Source:
    """A file, read whole now, so that it is of one moment.

    Raises:
        StateError: it cannot be read.
    """
    with disk_errors_of(path.parent):
        return of_bytes(name, path.read_bytes())


def take_backup(
    config: CoordinatorConfig, others: list[Source], out: Path, progress: Progress
) -> Contents:
    """Write `out`, verified, or nothing; a file that is there stays until then.

    Raises:
        StateError: there is no state, it is damaged, or a disk is full or failing.
        BundleError: the bundle of the configuration is not there, or not that of the state.
    """
    out = out.absolute()
    with disk_errors_of(out.parent):
        make_folder(out.parent)
        beside = out.with_name(f".{out.name}.new")
        copy = out.with_name(f".{out.name}.db")
        try:
            with _held(config) as held:
                database = _copied(held.store, copy, progress)
                contents = _write(config, held, [database, *others], beside, progress)
            _verify(beside, progress)
            beside.replace(out)
            sync_folder(out.parent)
            with as_owner_of(config.state_dir):
                (config.state_dir / BACKUP_NAME).touch(mode=0o600)
        finally:
            beside.unlink(missing_ok=True)
            for path in out.parent.glob(f"{copy.name}*"):
                path.unlink()
    return contents


class _Held(NamedTuple):
    store: Store
    """In a snapshot."""
    folder: Path
    models: list[str]
    updates: list[str]
    """Digests."""
    left_out: list[str]


@contextmanager
def _held(config: CoordinatorConfig) -> Iterator[_Held]:
    """The state at a moment."""
    state_dir = config.state_dir
    if not (state_dir / "coordinator.db").exists():
        raise StateError(
            f"no coordinator state in {str(state_dir)!r}", hint="has this coordinator ever run?"
        )
    folder = state_dir / HOLD_NAME
    with ExitStack() as stack:
        with as_owner_of(state_dir):
            stack.enter_context(locked(folder, "backup"))
            stack.callback(_let_go, state_dir, folder)
            store = Store(state_dir, read_only=True)
            stack.callback(store.close)
            held = _hold(store, folder, config.history.rounds_kept, stack)
        yield held


def _hold(store: Store, folder: Path, rounds_kept: int, stack: ExitStack) -> _Held:
    """Begin a snapshot, and link what it names.

    What was removed between the two is not named by the next snapshot: only what is missing in two
    of them is lost.
    """
    before: set[str] | None = None
    while True:
        with ExitStack() as attempt:
            attempt.enter_context(store.snapshot())
            models = {model.ref.digest for model in store.models()}
            named = store.digests_kept(rounds_kept) | models
            missing = {digest for digest in named if not _linked(store, folder, digest)}
            if not missing or missing == before:
                stack.push(attempt.pop_all())
                break
            before = missing
    if missing & models:
        raise DamagedError(
            f"model {min(missing & models)[:12]} of {str(store.folder)!r} is gone", hint=_DOCTOR
        )
    return _Held(store, folder, sorted(models), sorted(named - models - missing), sorted(missing))


def _linked(store: Store, folder: Path, digest: str) -> bool:
    held = folder / digest
    with disk_errors_of(folder):
        if not held.exists():
            try:
                held.hardlink_to(store.blobs.path(digest))
            except FileNotFoundError:
                return False
    return True


def _let_go(state_dir: Path, folder: Path) -> None:
    with as_owner_of(state_dir):
        shutil.rmtree(folder, ignore_errors=True)


def _copied(store: Store, path: Path, progress: Progress) -> Source:
    """A copy of the database at `path`, looked through."""
    private_file(path).close()
    progress.begin("the database", 0)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")
            store.copy_to(target, progress.moved)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log
            (said,) = target.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from exc
        said = str(exc)
    if said != "ok":
        raise DamagedError(
            f"the database in {str(store.folder)!r} is damaged: {said}", hint=_DOCTOR
        )
    with path.open("rb") as file:
        size, digest = sha256_of(file)
    return Source(Entry(DATABASE_ENTRY, size, digest), _opener(path))


def _write(
    config: CoordinatorConfig, held: _Held, sources: list[Source], beside: Path, progress: Progress
) -> Contents:
    """Write everything; once more without an update that turns out to be damaged."""
    sources = [*sources, *bundle_sources(config.bundle, held.store.fact("bundle") or "")]
    left_out = set(held.left_out)
    while True:
        updates = [digest for digest in held.updates if digest not in left_out]
        blobs = [_blob(held.folder, digest) for digest in (*held.models, *updates)]
        try:
            return _write_once(held.store, [*sources, *blobs], left_out, beside, progress)
        except DamagedError as exc:
            name = str(exc.args[0])
            digest = name.removeprefix(f"{BLOBS_ENTRY}/")
            if digest not in updates:
                raise DamagedError(f"{name!r} is damaged on disk", hint=_DOCTOR) from exc
            left_out.add(digest)


def _write_once(
    store: Store, sources: list[Source], left_out: set[str], path: Path, progress: Progress
) -> Contents:
    by_name = {source.entry.name: source for source in sources}
    contents = Contents(
        format=1,
        version=__version__,
        made_at_ms=time.time_ns() // 1_000_000,
        federation=store.fact("federation") or "",
        run_id=store.fact("run_id") or "",
        model_version=store.load_state().model_version,
        bundle=store.fact("bundle") or "",
        left_out=tuple(sorted(left_out)),
        entries=tuple(source.entry for source in by_name.values()),
    )
    progress.begin("writing", total_bytes(contents.entries))
    with private_file(path) as file:
        write_archive(file, contents, lambda e: by_name[e.name].open(), progress.moved)
        file.flush()
        os.fsync(file.fileno())
    return contents


def bundle_sources(folder: Path, digest: str) -> list[Source]:
    """The files of a bundle's folder, which must be that of the state.

    Raises:
        BundleError: it is another one, or has names that no backup can hold.
    """
    bundle = open_bundle_dir(folder)
    if bundle.digest != digest:
        raise BundleError(
            f"the bundle in {str(folder)!r} is {bundle.digest[:12]}, the state's is {digest[:12]}",
            hint="give the configuration that the coordinator runs with",
        )
    sources = [of_bytes(f"files/bundle/{MANIFEST_NAME}", bundle.fetch(MANIFEST_NAME))]
    for name, info in bundle.manifest.files.items():
        entry = Entry(f"files/bundle/{name}", info.size_bytes, info.sha256)
        if not is_entry_name(entry.name):
            raise BundleError(f"the bundle's file {name!r} has a name that no backup can hold")
        sources.append(Source(entry, _opener(folder / name)))
    return sources


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _blob(folder: Path, digest: str) -> Source:
    path = folder / digest
    return Source(Entry(f"{BLOBS_ENTRY}/{digest}", path.stat().st_size, digest), _opener(path))


def private_file(path: Path) -> BinaryIO:
    """A new file that nobody but its owner can ever read, instead of what is there."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _verify(path: Path, progress: Progress) -> None:
    """Read it all again, as a restoration would."""
    with path.open("rb") as file:
        contents = read_contents(file, path.stat().st_size)
        progress.begin("verifying", total_bytes(contents.entries))
        for _, copy in read_entries(file, contents):
            copy(None, progress.moved)
