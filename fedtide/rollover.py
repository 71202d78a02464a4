"""A new key for the coordinator: made beside the old one, taken as a whole at its next start.

    IDENTITY/next/   key.pem, ca.pem, certificate.pem, key_set: complete as soon as it has this name

The key set of the next version names the new key only. Devices learn it from the retained
message when they next come; from then on they refuse whatever the old key seals.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedtide.files import (
    disk_errors_of,
    locked,
    make_folder,
    read_regular,
    remove_tree,
    sync_folder,
    write_atomically,
    write_secret,
)
from fedtide.identity import (
    CA_NAME,
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
    ca: bytes,
    certify: Callable[[Ed25519PublicKey], bytes],
    known: bytes = b"",
) -> bytes:
    """Make the coordinator's next key in its identity's `folder`; the sealed key set that names it.

    `certify` gives the coordinator's certificate for a public key, `ca` is the authority's; in PEM.
    Nothing in `folder` has to be of any use: whoever stole the key may have been there. `known` is
    the newest key set that the caller has. Whoever calls this is who the coordinator runs as. One
    that was prepared and not yet taken is replaced.

    Raises:
        StateError: the disk refuses.
    """
    raws = (known, _content(folder / KEY_SET_NAME), _content(folder / NEXT_NAME / KEY_SET_NAME))
    versions = [_version(raw, topics, public_bytes(authority)) for raw in raws]
    # The clock, so that a folder restored from a backup does not stay behind what devices know.
    version, key = max(max(versions) + 1, epoch_ms() // 1000), new_key()
    beside = folder / f".{NEXT_NAME}.new"
    with disk_errors_of(folder):
        remove_tree(beside)
        make_folder(beside)
        save_key(beside / KEY_NAME, key)
        write_atomically(beside / CA_NAME, ca)
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
        identity = load_identity(folder)
        identity.warn_if_over()
        yield identity


def _take_next(folder: Path) -> None:
    """Each file replaces the old one; cut short, all of it is done again at the next start."""
    prepared = folder / NEXT_NAME
    if not prepared.is_dir():
        return
    with disk_errors_of(folder):
        write_secret(folder / KEY_NAME, read_regular(prepared / KEY_NAME))
        if (prepared / CA_NAME).exists():  # an older fedtide has prepared none: it stays
            write_atomically(folder / CA_NAME, read_regular(prepared / CA_NAME))
        for name in (CERTIFICATE_NAME, KEY_SET_NAME):
            write_atomically(folder / name, read_regular(prepared / name))
        _remove_next(folder)
    _log.info("the key that was prepared is in use from now on")


def _remove_next(folder: Path) -> None:
    """It is either there with all of its files or not at all."""
    prepared, done = folder / NEXT_NAME, folder / f".{NEXT_NAME}.done"
    remove_tree(done)
    if prepared.exists() or prepared.is_symlink():
        prepared.rename(done)
        sync_folder(folder)
        remove_tree(done)


def _content(path: Path) -> bytes:
    """Empty: there is none that can be read."""
    try:
        return read_regular(path)
    except OSError:
        return b""


def _version(raw: bytes, topics: Topics, authority: bytes) -> int:
    """0: it is none of the authority's."""
    key_set = open_key_set(topics, raw, authority)
    return key_set.version if isinstance(key_set, KeySet) else 0
