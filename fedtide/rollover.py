"""A new key for the coordinator: made beside the old one, taken as a whole at its next start.

    IDENTITY/next/   key.pem, certificate.pem, key_set: complete as soon as it has this name

The key set of the next version names the new key only. Devices learn it from the retained
message when they next come; from then on they refuse whatever the old key seals.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedtide.errors import StateError
from fedtide.files import (
    disk_errors_of,
    locked,
    make_folder,
    sync_folder,
    write_atomically,
    write_secret,
)
from fedtide.identity import (
    CERTIFICATE_NAME,
    KEY_NAME,
    KEY_SET_NAME,
    Identity,
    load_identity,
    require_folder,
)
from fedtide.key_set import open_key_set, seal_key_set
from fedtide.keys import new_key, public_bytes, save_key
from fedtide.messages import KeySet
from fedtide.sequence import epoch_ms
from fedtide.topics import Topics

NEXT_NAME = "next"
_log = logging.getLogger(__name__)


def prepare_rollover(
    folder: Path,
    topics: Topics,
    authority: Ed25519PrivateKey,
    certify: Callable[[Ed25519PublicKey], bytes],
) -> bytes:
    """Make the coordinator's next key in its identity's `folder`; the sealed key set that names it.

    `certify` gives the coordinator's certificate for a public key, in PEM. Whoever calls this is
    who the coordinator runs as. One that was prepared and not yet taken is replaced.

    Raises:
        StateError: the key set in `folder` is not the authority's, or the disk refuses.
    """
    known = [
        _version(place / KEY_SET_NAME, topics, public_bytes(authority))
        for place in (folder, folder / NEXT_NAME)
        if place.is_dir()
    ]
    # The clock, so that a folder restored from a backup does not stay behind what devices know.
    version, key = max(max(known, default=0) + 1, epoch_ms() // 1000), new_key()
    beside = folder / f".{NEXT_NAME}.new"
    with disk_errors_of(folder):
        if beside.exists():
            shutil.rmtree(beside)
        make_folder(beside)
        save_key(beside / KEY_NAME, key)
        write_atomically(beside / CERTIFICATE_NAME, certify(key.public_key()))
        raw = seal_key_set(topics, KeySet(version, (public_bytes(key),)), authority)
        write_atomically(beside / KEY_SET_NAME, raw)
        _remove_next(folder)
        beside.rename(folder / NEXT_NAME)
        sync_folder(folder)
    return raw


@contextmanager
def held_identity(folder: Path, owner: str) -> Iterator[Identity]:
    """The identity in `folder`, with its next key if there is one, for this process alone.

    Raises:
        ConfigError: `load_identity` says what is wrong.
        StateError: another process holds it, or the disk refuses.
    """
    require_folder(folder)
    with locked(folder, owner):
        _take_next(folder)
        yield load_identity(folder)


def _take_next(folder: Path) -> None:
    """Each file replaces the old one; cut short, all of it is done again at the next start."""
    prepared = folder / NEXT_NAME
    if not prepared.is_dir():
        return
    with disk_errors_of(folder):
        write_secret(folder / KEY_NAME, (prepared / KEY_NAME).read_bytes())
        for name in (CERTIFICATE_NAME, KEY_SET_NAME):
            write_atomically(folder / name, (prepared / name).read_bytes())
        _remove_next(folder)
    _log.info("the key that was prepared is in use from now on")


def _remove_next(folder: Path) -> None:
    """It is either there with all of its files or not at all."""
    prepared, done = folder / NEXT_NAME, folder / f".{NEXT_NAME}.done"
    if done.exists():
        shutil.rmtree(done)
    if prepared.exists():
        prepared.rename(done)
        sync_folder(folder)
        shutil.rmtree(done)


def _version(path: Path, topics: Topics, authority: bytes) -> int:
    with disk_errors_of(path.parent):
        raw = path.read_bytes() if path.exists() else b""
    key_set = open_key_set(topics, raw, authority) if raw else None
    if isinstance(key_set, str):
        raise StateError(
            f"the key set {str(path)!r} cannot be used: {key_set}",
            hint="restore the identity's folder from a backup",
        )
    return 0 if key_set is None else key_set.version
