"""What a backup is made of beside blobs: files, databases, bundles, identities."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backup.archive import Entry, is_entry_name, sha256_of
from fedtide.bundle import open_bundle_dir, sha256_hex
from fedtide.errors import BundleError, DamagedError
from fedtide.files import disk_errors_of
from fedtide.manifest import MANIFEST_NAME
from fedtide.ownership import as_owner_of
from registrar.config import RegistrarConfig

BUNDLE, IDENTITY, REGISTRAR = "files/bundle/", "files/identity/", "files/registrar/"
COORDINATOR_TOML, REGISTRAR_TOML = "files/coordinator.toml", "files/registrar.toml"
MOSQUITTO_CONF = "files/mosquitto.conf"
REGISTRY_NAME, LOCK_NAME = "registry.db", "lock"
DOCTOR = "run `fedtide doctor` with the same configuration"


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


def of_folder(begin: str, folder: Path) -> Iterator[Source]:
    """The files of a folder, but for locks and what is being written.

    Raises:
        StateError: it cannot be read.
    """
    with disk_errors_of(folder):
        for path in sorted(folder.rglob("*")):
            name = begin + path.relative_to(folder).as_posix()
            if path.is_file() and path.name != LOCK_NAME and is_entry_name(name):
                yield of_file(name, path)


def registrar_sources(config: RegistrarConfig, copies: Path) -> list[Source]:
    """The registry, the authority's key, the registrar's identity, the broker's configuration.

    Raises:
        StateError: something is not there, or cannot be read.
        OSError: the disk of `copies` is full.
    """
    registry = config.state_dir / REGISTRY_NAME
    with disk_errors_of(config.state_dir):
        registry.stat()

    def copy(target: sqlite3.Connection) -> None:
        with as_owner_of(config.state_dir):
            uri = f"{registry.resolve().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as database:
                database.backup(target)

    path = copies / REGISTRY_NAME
    return [
        copied_database(REGISTRAR + REGISTRY_NAME, copy, path, str(config.state_dir)),
        *of_folder(f"{REGISTRAR}authority/", config.authority),
        *of_folder(f"{REGISTRAR}identity/", config.identity),
        of_file(MOSQUITTO_CONF, config.broker_dir / "mosquitto.conf"),
    ]


def copied_database(
    name: str, copy: Callable[[sqlite3.Connection], None], path: Path, where: str
) -> Source:
    """What `copy` makes of an empty database at `path`, looked through; `where` it is from.

    Raises:
        DamagedError: it is damaged.
        OSError: the disk is full or failing.
    """
    private_file(path).close()
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")
            copy(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log
            (said,) = target.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from exc
        said = str(exc)
    if said != "ok":
        raise DamagedError(f"the database in {where!r} is damaged: {said}", hint=DOCTOR)
    with path.open("rb") as file:
        size, digest = sha256_of(file)
    return Source(Entry(name, size, digest), opener(path))


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
    sources = [of_bytes(BUNDLE + MANIFEST_NAME, bundle.fetch(MANIFEST_NAME))]
    for name, info in bundle.manifest.files.items():
        entry = Entry(BUNDLE + name, info.size_bytes, info.sha256)
        if not is_entry_name(entry.name):
            raise BundleError(f"the bundle's file {name!r} has a name that no backup can hold")
        sources.append(Source(entry, opener(folder / name)))
    return sources


def opener(path: Path) -> Callable[[], BinaryIO]:
    """Opens it, when it is its turn."""
    return lambda: path.open("rb")


def private_file(path: Path) -> BinaryIO:
    """A new file that nobody but its owner can ever read, instead of what is there."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
