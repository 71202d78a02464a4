"""`fedtide device leave`: the opposite of joining. What it removes is what joining has made.

The device's data are never touched, wherever they lie. The membership itself ends on the server.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from edge_client.membership.configuration import require_ours
from edge_client.membership.layout import Layout, layout_of
from edge_client.membership.remains import identity_of, ours_of
from edge_client.membership.service import remove_service_user
from fedtide import units
from fedtide.errors import StateError
from fedtide.files import remove_tree
from fedtide.host_check import is_locked
from fedtide.logs import escaped


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
    identity = identity_of(layout)
    ours = ours_of(layout, identity)
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
        _tell(f"device {name!r} has left this machine; if it has not been revoked yet, and has no")
        _tell(
            f"new join code (which would be void, too), on the server: fedtide device revoke {name}"
        )
    else:
        _tell("what was left of a device is removed")
    if layout.home.exists():
        _tell(f"{str(layout.home)!r} stays: there are other files in it")
    return 0


def _ours_if_empty(layout: Layout) -> list[Path]:
    """The innermost first; in a user's own place only the folder itself."""
    if layout.config.parent == layout.home:
        return [layout.home]
    return [layout.home, layout.home.parent, layout.config.parent]


def _tell(text: str) -> None:
    print(escaped(text), file=sys.stderr, flush=True)
