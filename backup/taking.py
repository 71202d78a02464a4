"""Taking a backup of a running coordinator, without stopping it.

The database is read at one moment; the blobs that it names then are held by hard links until they
are copied, whatever the coordinator removes meanwhile. So both fit together, and a round goes on
all the time: SQLite's readers and writer do not wait for each other.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from backup.archive import (
    Contents,
    Entry,
    read_contents,
    read_entries,
    total_bytes,
    write_archive,
)
from backup.progress import Progress
from backup.sources import (
    DOCTOR,
    LOCK_NAME,
    Source,
    bundle_sources,
    copied_database,
    opened_as_owner,
    private_file,
    registrar_sources,
)
from coordinator.config import CoordinatorConfig
from coordinator.figures import BACKUP_NAME
from coordinator.store import Store
from fedtide import __version__
from fedtide.errors import ConfigError, DamagedError, StateError
from fedtide.files import disk_errors_of, locked, require_place, sync_folder
from fedtide.ownership import as_owner_of
from registrar.config import RegistrarConfig

HOLD_NAME = "backup"
"""In the state folder, while a backup is taken: links to the blobs that it holds."""
_WHOLE = "whole"
DATABASE_ENTRY, BLOBS_ENTRY = "state/coordinator.db", "state/blobs"


def take_backup(
    config: CoordinatorConfig,
    others: list[Source],
    out: Path,
    progress: Progress,
    registrar: RegistrarConfig | None = None,
) -> Contents:
    """Write `out`, verified, or nothing; a file that is there stays until then. With `registrar`,
    registry and authority are in it, too.

    Raises:
        ConfigError: no file can be written there, or somebody else's folder is in the way.
        StateError: there is no state, it is damaged, or a disk is full or failing.
        BundleError: the bundle of the configuration is not there, or not that of the state.
    """
    out = out.absolute()
    require_place(out)
    work = out.with_name(f".{out.name}.new")
    with disk_errors_of(out.parent):
        _make_own(work)
    with disk_errors_of(out.parent), locked(work, "backup"):
        try:
            for path in work.iterdir():  # of one that was killed
                if path.name != LOCK_NAME:
                    path.unlink()
            contents = _taken(config, others, registrar, work, progress)
            (work / _WHOLE).replace(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if contents.run_id:
        with as_owner_of(config.state_dir):
            (config.state_dir / BACKUP_NAME).touch(mode=0o600)
    return contents


def _make_own(work: Path) -> None:
    """Make the folder, or take that of a backup that was killed. Where others may write, too, they
    could have made it, and exchange what lies in it.

    Raises:
        ConfigError: somebody has.
    """
    with suppress(FileExistsError):
        work.mkdir(mode=0o700)
    there = work.lstat()
    ours = stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid()
    if not ours or there.st_mode & 0o022:
        raise ConfigError(
            f"{str(work)!r} is there already, and no backup of yours has made it",
            hint="find out who did, and remove it; or name another folder with --out",
        )


def _taken(
    config: CoordinatorConfig,
    others: list[Source],
    registrar: RegistrarConfig | None,
    work: Path,
    progress: Progress,
) -> Contents:
    """In `work`, whole and verified."""
    whole = work / _WHOLE
    sources = [*others, *([] if registrar is None else registrar_sources(registrar, work))]
    if registrar is not None and not _has_run(config):
        contents = _write_once(_About(config.federation), sources, set(), whole, progress)
    else:
        with _held(config) as held:
            progress.begin("the database", 0)
            database = copied_database(
                DATABASE_ENTRY,
                lambda target: held.store.copy_to(target, progress.moved),
                work / "coordinator.db",
                str(config.state_dir),
            )
            contents = _write(config, held, [database, *sources], whole, progress)
    _verify(whole, progress)
    return contents


def _has_run(config: CoordinatorConfig) -> bool:
    return (config.state_dir / "coordinator.db").exists()


class _About(NamedTuple):
    """What a backup says of the state in it."""

    federation: str
    run_id: str = ""
    model_version: int = 0
    bundle: str = ""


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
    if not _has_run(config):
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
            f"model {min(missing & models)[:12]} of {str(store.folder)!r} is gone", hint=DOCTOR
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


def _write(
    config: CoordinatorConfig, held: _Held, sources: list[Source], path: Path, progress: Progress
) -> Contents:
    """Write everything; once more without an update that turns out to be damaged."""
    store = held.store
    about = _About(
        federation=store.fact("federation") or "",
        run_id=store.fact("run_id") or "",
        model_version=store.load_state().model_version,
        bundle=store.fact("bundle") or "",
    )
    sources = [*sources, *bundle_sources(config.bundle, about.bundle)]
    left_out = set(held.left_out)
    while True:
        updates = [digest for digest in held.updates if digest not in left_out]
        blobs = [_blob(held.folder, digest) for digest in (*held.models, *updates)]
        try:
            return _write_once(about, [*sources, *blobs], left_out, path, progress)
        except DamagedError as exc:
            name = str(exc.args[0])
            digest = name.removeprefix(f"{BLOBS_ENTRY}/")
            if digest not in updates:
                raise DamagedError(f"{name!r} is damaged on disk", hint=DOCTOR) from exc
            left_out.add(digest)


def _write_once(
    about: _About, sources: list[Source], left_out: set[str], path: Path, progress: Progress
) -> Contents:
    by_name = {source.entry.name: source for source in sources}
    contents = Contents(
        format=1,
        version=__version__,
        made_at_ms=time.time_ns() // 1_000_000,
        **about._asdict(),
        left_out=tuple(sorted(left_out)),
        entries=tuple(source.entry for source in by_name.values()),
    )
    progress.begin("writing", total_bytes(contents.entries))
    with private_file(path) as file:
        write_archive(file, contents, lambda e: by_name[e.name].open(), progress.moved)
        file.flush()
        os.fsync(file.fileno())
    return contents


def _blob(folder: Path, digest: str) -> Source:
    size = (folder / digest).lstat().st_size
    return Source(
        Entry(f"{BLOBS_ENTRY}/{digest}", size, digest), partial(opened_as_owner, folder, digest)
    )


def _verify(path: Path, progress: Progress) -> None:
    """Read it all again, as a restoration would."""
    with path.open("rb") as file:
        contents = read_contents(file, path.stat().st_size)
        progress.begin("verifying", total_bytes(contents.entries))
        for _, copy in read_entries(file, contents):
            copy(None, progress.moved)
