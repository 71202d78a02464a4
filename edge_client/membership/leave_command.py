"""`fedtide device leave`: the opposite of joining. What it removes is what joining has made.

The device's data are never touched, wherever they lie. The membership itself ends on the server.
"""

from __future__ import annotations

import argparse
import stat
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from edge_client.membership.configuration import require_ours
from edge_client.membership.joining import NEW_KEY_NAME
from edge_client.membership.layout import Layout, layout_of
from edge_client.membership.service import remove_service_user
from fedtide import units
from fedtide.errors import FedtideError, StateError
from fedtide.files import remove_tree
from fedtide.host_check import is_locked
from fedtide.identity import CA_NAME, CERTIFICATE_NAME, KEY_NAME, Identity, load_identity
from fedtide.keys import load_key, public_bytes
from fedtide.logs import escaped
from fedtide.topics import is_device_name

_FILE_BYTES_MAX = 65_536
"""Of a key or a certificate."""


def leave(parsed: argparse.Namespace) -> int:
    """Remove service, configuration, identity, state and user; the exit code. What an attempt that
    was cut short has left behind, the next one removes.

    Raises:
        ConfigError: the configuration in place is of something else.
        StateError: a client is running that is no service, or the disk refuses.
        FedtideError: systemd refuses.
    """
    layout = layout_of(parsed)
    require_ours(layout)
    if layout.user is not None:
        units.remove("client")  # first: from now on nobody changes anything in there
    identity = _identity(layout.identity)
    ours = _ours(layout, identity)
    if not ours and (layout.user is None or not layout.home.exists()):
        _tell(f"there is nothing to leave: no device is in {str(layout.home)!r}")
        return 0
    if layout.user is None and is_locked(layout.state):
        raise StateError(
            f"the client in {str(layout.home)!r} is running", hint="stop it, then leave again"
        )
    for path in ours:
        remove_tree(path)
    if layout.user is not None:
        remove_service_user(layout)
    for folder in _ours_if_empty(layout):
        with suppress(OSError):  # something else is in it, or it is not there
            folder.rmdir()
    if identity is not None:
        name = identity.name
        _tell(f"device {name!r} has left this machine; so that its name can be given again:")
        _tell(f"    on the server: fedtide device revoke {name}")
    else:
        _tell("what was left of a device is removed")
    if layout.home.exists():
        _tell(f"{str(layout.home)!r} stays: there are other files in it")
    return 0


def _ours(layout: Layout, identity: Identity | None) -> list[Path]:
    """What is there and was made by joining, in the order in which it goes: what proves it last.

    The configuration proves it for everything, and so does the place of a service. Without, each
    folder proves itself, since the one that was named may be anybody's.
    """
    lock = layout.home / "lock"
    if layout.user is not None or layout.config.exists():
        ours = [layout.state, layout.identity, layout.joining, lock, layout.config]
    else:
        new_key = _key(layout.joining / NEW_KEY_NAME)
        half_made = new_key is not None and _key(layout.identity / KEY_NAME) == new_key
        ours = [layout.state, lock] if identity is not None else []
        ours += [layout.identity] if identity is not None or half_made else []
        ours += [layout.joining, lock] if new_key is not None else []
    return [path for path in ours if path.exists() or path.is_symlink()]


def _identity(folder: Path) -> Identity | None:
    """A device's, were it over; None: there is none.

    Only regular files are read: root waits for ever at a pipe that a client who was broken into
    has put there.
    """
    try:
        found = [(folder / name).lstat() for name in (KEY_NAME, CERTIFICATE_NAME, CA_NAME)]
        if not all(
            stat.S_ISREG(file.st_mode) and file.st_size <= _FILE_BYTES_MAX for file in found
        ):
            return None
        identity = load_identity(folder, now=datetime.min.replace(tzinfo=UTC))
    except (FedtideError, OSError):
        return None
    return identity if is_device_name(identity.name) else None


def _key(path: Path) -> bytes | None:
    """The public key of a private one, if it is one."""
    try:
        return public_bytes(load_key(path))
    except FedtideError:
        return None


def _ours_if_empty(layout: Layout) -> list[Path]:
    """The innermost first; in a user's own place only the folder itself."""
    if layout.config.parent == layout.home:
        return [layout.home]
    return [layout.home, layout.home.parent, layout.config.parent]


def _tell(text: str) -> None:
    print(escaped(text), file=sys.stderr, flush=True)
