"""The client as a service of this machine: its user, its folders, its unit. Needs root."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from edge_client.membership.layout import Layout
from fedtide import units
from fedtide.files import disk_errors_of
from fedtide.system_user import is_ours, make_user, remove_user


def make_service_user(layout: Layout) -> None:
    """The user, and the folder that it alone may look into; nothing is done twice.

    Raises:
        ConfigError: that user could not run this fedtide.
        FedtideError: the system refuses.
        StateError: the disk refuses.
    """
    assert layout.user is not None
    make_user(layout.user, layout.home)
    units.check_reachable(layout.user)
    account = pwd.getpwnam(layout.user)
    with disk_errors_of(layout.home.parent):
        for folder in (layout.home.parent, layout.config.parent):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        layout.home.mkdir(mode=0o700, exist_ok=True)
        os.chown(layout.home, account.pw_uid, account.pw_gid)


def unit_of(layout: Layout, data: Path | None) -> str:
    """The text of the client's unit.

    Raises:
        ConfigError: a path cannot stand in a unit.
    """
    assert layout.user is not None
    return units.render(
        "client",
        user=layout.user,
        config=layout.config,
        writable=[layout.home],
        readable=[] if data is None else [data],
    )


def start_service(unit: str) -> None:
    """Write the unit, and start it now and at each boot; returns when the client is ready.

    Raises:
        FedtideError: it does not come up; with what it logged last.
    """
    units.install("client", unit)
    units.start("client")


def remove_service_user(layout: Layout) -> None:
    """Remove the user that `make_service_user` has made, if it has."""
    owner = _owner(layout.home)
    if owner is not None and is_ours(owner, layout.home):
        remove_user(owner, layout.home)


def _owner(folder: Path) -> str | None:
    try:
        return pwd.getpwuid(folder.stat().st_uid).pw_name
    except (OSError, KeyError):
        return None
