"""Where a joined device keeps what it has: its configuration, identity and state."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

from fedtide.errors import ConfigError

USER = "fedtide"
"""The system user that the service runs as, unless another is asked for."""
_CONFIG, _HOME = Path("etc/fedtide/client.toml"), Path("var/lib/fedtide/client")
_SYSTEMD = Path("/run/systemd/system")
"""It exists where systemd runs (sd_booted(3))."""


class Layout(NamedTuple):
    """See the module."""

    config: Path
    home: Path
    """Folder of what only the client may read."""
    user: str | None = None
    """Whose service the client is; None: there is no service, whoever likes starts it."""
    relative: bool = False
    """The configuration names the folders as seen from itself, so that all can be moved."""

    @property
    def identity(self) -> Path:
        """Key, certificate and what they are checked with."""
        return self.home / "identity"

    @property
    def state(self) -> Path:
        """What is on its way, and the models."""
        return self.home / "state"

    @property
    def joining(self) -> Path:
        """The claim, while the device joins."""
        return self.home / "joining"

    def in_config(self, path: Path) -> str:
        """How the configuration names a path of this layout."""
        return os.path.relpath(path, self.config.parent) if self.relative else str(path)


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--folder`, `--root` and `--user`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="everything in DIR, no service: for a user without root's rights",
    )
    where.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the tree of a whole system under DIR (images, containers): no service, no user",
    )
    where.add_argument(
        "--user", default=USER, metavar="NAME", help=f"the service's system user ({USER})"
    )


def layout_of(parsed: argparse.Namespace) -> Layout:
    """What the flags say; without any, the machine's own folders and service.

    Raises:
        ConfigError: that takes root's rights, or systemd, and one of them is missing.
    """
    if parsed.folder is not None:
        folder = Path(parsed.folder).expanduser().absolute()
        return Layout(folder / "client.toml", folder, relative=True)
    if parsed.root is not None:
        root = Path(parsed.root).expanduser().absolute()
        return Layout(root / _CONFIG, root / _HOME, relative=True)
    if os.geteuid() != 0:
        raise ConfigError(
            "this makes a system service, which takes root's rights",
            hint="put sudo before the command; or, without a service, add --folder DIR",
        )
    if not _SYSTEMD.is_dir():
        raise ConfigError(
            "this machine does not run systemd, which the service needs",
            hint="add --folder DIR, and start the client by other means; for an image --root DIR",
        )
    return Layout("/" / _CONFIG, "/" / _HOME, parsed.user)
