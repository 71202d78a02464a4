"""Restoring a whole server: the tree that `fedtide server init` makes, as far as nobody can make it
anew. The rest, the broker's certificate, access lists, units, is made by repeating that command.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from backup.archive import Contents
from backup.progress import Progress
from backup.restoring import STATE, check_backup, require_empty, restore_backup
from backup.sources import (
    BUNDLE,
    COORDINATOR_TOML,
    IDENTITY,
    MOSQUITTO_CONF,
    REGISTRAR,
    REGISTRAR_TOML,
)
from fedtide.config import load_config
from fedtide.errors import ConfigError
from fedtide.system_user import make_user
from registrar.config import RegistrarConfig
from registrar.installation import Installation, Wanted
from registrar.layout import ROLES, Layout


def restore_server(path: Path, root: Path, progress: Progress) -> tuple[Contents, str]:
    """Put everything in its place under `root`; the command that makes the rest.

    Raises:
        ConfigError: the backup is of no whole server, or something is there already.
        DamagedError, StateError: as `restore_backup`.
    """
    layout = Layout(root.absolute(), system=root.absolute() == Path("/"))
    texts = {
        COORDINATOR_TOML: layout.coordinator_toml,
        REGISTRAR_TOML: layout.registrar_toml,
        MOSQUITTO_CONF: layout.mosquitto_conf,
    }
    folders = dict(zip((REGISTRAR, BUNDLE, IDENTITY, STATE), layout.restored, strict=True))
    contents = check_backup(path, progress)
    names = {entry.name for entry in contents.entries}
    if not names.issuperset(texts):
        raise ConfigError(
            f"{str(path)!r} is no backup of a whole server: it has no registrar",
            hint="restore what it has with --state-dir and --files-dir",
        )
    there = [text for text in texts.values() if text.exists()]
    if there:
        raise ConfigError(
            f"{str(there[0])!r} is there already",
            hint="a whole server is restored on a machine without one; move /etc/fedtide and "
            "/var/lib/fedtide away first",
        )
    for folder in folders.values():
        require_empty(folder)
    if layout.system:
        for role in ROLES:
            make_user(layout.user(role), layout.home(role))
    nothing = Wanted(contents.federation, (), 0, 0, None, None)
    Installation(layout, nothing).make_folders()
    restore_backup(path, folders, progress, texts)
    config = load_config(layout.registrar_toml, RegistrarConfig)
    words = ["fedtide", "server", "init", config.host, "--federation", config.federation]
    words += ["--port", str(config.port), "--local-port", str(config.broker.port)]
    words += [] if layout.system else ["--root", str(layout.root)]
    return contents, shlex.join(words)
