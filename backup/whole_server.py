"""Restoring a whole server: the tree that `fedtide server init` makes, as far as nobody can make it
anew. The rest, the broker's certificate, access lists, units, is made by repeating that command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from backup.archive import Contents
from backup.progress import Progress
from backup.restoring import (
    STATE,
    check_backup,
    new_folders_removed,
    require_empty,
    restore_backup,
)
from backup.sources import (
    BUNDLE,
    COORDINATOR_TOML,
    IDENTITY,
    MOSQUITTO_CONF,
    REGISTRAR,
    REGISTRAR_TOML,
)
from fedtide.config import load_config, toml_string
from fedtide.errors import ConfigError
from fedtide.files import write_atomically
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
    made = layout.broker_dir, layout.members.parent, layout.identity("observer").parent
    with new_folders_removed(*made, *map(layout.home, ROLES)):
        Installation(layout, nothing).make_folders()
        restore_backup(path, folders, progress, texts)
    config = load_config(layout.registrar_toml, RegistrarConfig)
    _move_paths(_root_of(config, layout), layout, texts.values())
    words = ["fedtide", "server", "init", config.host, "--federation", config.federation]
    words += ["--port", str(config.port), "--local-port", str(config.broker.port)]
    words += [] if layout.system else ["--root", str(layout.root)]
    return contents, shlex.join(words)


def _root_of(config: RegistrarConfig, layout: Layout) -> Path | None:
    """Under which the server lay that the backup was taken of; None: it is no tree of ours."""
    within = layout.home("registrar").relative_to(layout.root).parts
    there = config.state_dir
    return there.parents[len(within) - 1] if there.parts[-len(within) :] == within else None


def _move_paths(before: Path | None, layout: Layout, texts: Iterable[Path]) -> None:
    """What is restored works on its own files, never on those of the server that it was, which
    may be running."""
    if before is None or before == layout.root:
        return
    for text in texts:
        said = text.read_text(encoding="utf-8")
        for folder in (layout.etc, layout.var):
            former, now = (
                _in_toml(path) if text.suffix == ".toml" else str(path)
                for path in (before / folder.relative_to(layout.root), folder)
            )
            escaped = now.replace("\\", r"\\")
            said = re.sub(rf"{re.escape(former)}(?=[/\"\s])", escaped, said)
        mode = text.stat().st_mode & 0o777
        write_atomically(text, said.encode())
        text.chmod(mode)


def _in_toml(path: Path) -> str:
    """As it stands between the quotes."""
    return toml_string(str(path))[1:-1]
