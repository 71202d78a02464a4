"""What a backup is made of beside blobs: files, databases, bundles, identities."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backup.archive import Entry, is_entry_name, sha256_of
from fedtide.bundle import open_bundle_dir, sha256_hex
from fedtide.errors import BundleError, DamagedError, StateError
from fedtide.files import disk_errors_of, open_regular, read_regular, require_database
from fedtide.identity import CA_NAME, CERTIFICATE_NAME, KEY_NAME, KEY_SET_NAME
from fedtide.manifest import MANIFEST_NAME
from fedtide.ownership import as_owner_of
from fedtide.rollover import NEXT_NAME
from registrar.config import RegistrarConfig

BUNDLE, IDENTITY, REGISTRAR = "files/bundle/", "files/identity/", "files/registrar/"
COORDINATOR_TOML, REGISTRAR_TOML = "files/coordinator.toml", "files/registrar.toml"
MOSQUITTO_CONF = "files/mosquitto.conf"
REGISTRY_NAME, LOCK_NAME = "registry.db", "lock"
_NEEDED = (KEY_NAME, CERTIFICATE_NAME)
_SEQUENCE = ("sequence.0", "sequence.1")
_OPTIONAL = (
    CA_NAME,
    KEY_SET_NAME,
    *_SEQUENCE,
    *(f"{NEXT_NAME}/{name}" for name in (KEY_NAME, CA_NAME, CERTIFICATE_NAME, KEY_SET_NAME)),
)
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
    with disk_errors_of(path.parent), as_owner_of(path):
        return of_bytes(name, read_regular(path))


def of_identity(begin: str, folder: Path) -> Iterator[Source]:
    """Key and certificate in `folder`, and what else belongs to an identity as far as it is there;
    nothing else: whoever owns the folder may have put anything into it.

    Raises:
        StateError: something of it is missing, is no regular file, or cannot be read.
    """
    return _of_folder(begin, folder, _NEEDED, _OPTIONAL)


def _of_folder(
    begin: str, folder: Path, needed: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[Source]:
    for name in (*needed, *optional):
        path = folder / name
        with disk_errors_of(folder):
            try:
                with as_owner_of(folder):
                    content = read_regular(path, links=False)
            except FileNotFoundError as exc:
                if name in optional:
                    continue
                raise StateError(f"there is no {str(path)!r}", hint=DOCTOR) from exc
        yield of_bytes(begin + name, content)


def registrar_sources(config: RegistrarConfig, copies: Path) -> list[Source]:
    """The registry, the authority's key, the numbers of what it has sealed, the registrar's
    identity, the broker's configuration.

    Raises:
        StateError: something is not there, or cannot be read.
        OSError: the disk of `copies` is full.
    """
    registry = config.state_dir / REGISTRY_NAME
    with disk_errors_of(config.state_dir):
        registry.stat()
        require_database(registry)

    def copy(target: sqlite3.Connection) -> None:
        with as_owner_of(config.state_dir):
            uri = f"{registry.resolve().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as database:
                database.backup(target)

    path = copies / REGISTRY_NAME
    return [
        copied_database(REGISTRAR + REGISTRY_NAME, copy, path, str(config.state_dir)),
        *of_identity(f"{REGISTRAR}authority/", config.authority),
        *of_identity(f"{REGISTRAR}identity/", config.identity),
        *_of_folder(REGISTRAR, config.state_dir, (), _SEQUENCE),
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
    try:
        with as_owner_of(folder):
            bundle = open_bundle_dir(folder)
    except OSError as exc:
        raise BundleError(f"no bundle in {str(folder)!r}: {exc.strerror}") from exc
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
        sources.append(Source(entry, partial(opened_as_owner, folder, name, links=True)))
    return sources


def opened_as_owner(folder: Path, name: str, *, links: bool = False) -> BinaryIO:
    """A file in a folder that is somebody else's, read with that one's rights only: what lies
    there may lead to what is not his.

    Raises:
        OSError: its owner cannot read it, or it is none (`open_regular`).
    """
    with as_owner_of(folder):
        return open_regular(folder / name, links=links)


def opener(path: Path) -> Callable[[], BinaryIO]:
    """Opens it, when it is its turn."""
    return lambda: path.open("rb")


def private_file(path: Path) -> BinaryIO:
    """A new file that nobody but its owner can ever read, instead of what is there."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
