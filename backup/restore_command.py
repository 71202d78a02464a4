"""`fedtide server restore FILE --state-dir DIR`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from fedtide.errors import ConfigError
from fedtide.logs import escaped

_AFTER = """
What happened after {made_at} is not known here:
  1. devices that were REVOKED since then are members again: revoke them again, before you go on
  2. devices that joined since then get no answer until they have joined again: here
     fedtide device add NAME, there fedtide device leave, then join
  3. make what is missing, and start everything (with every HOST that devices use):
     {then}
  4. if the coordinator's key was changed since then (fedtide server rotate-key), change it again;
     once is enough, however often it was changed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("backup", type=Path, metavar="FILE", help="that `server backup` wrote")
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="for the coordinator's state: missing or empty",
    )
    parser.add_argument(
        "--files-dir",
        type=Path,
        metavar="DIR",
        help="for everything else in it, the bundle and the configuration: missing or empty",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="restore a whole server under DIR (/ on a server) instead",
    )
    parser.add_argument(
        "--check", action="store_true", help="read and verify it, and restore nothing"
    )


def run(parsed: argparse.Namespace) -> int:
    """Restore, or check."""
    from backup.archive import total_bytes
    from backup.progress import Progress
    from backup.restoring import FILES, STATE, check_backup, restore_backup

    given = {STATE: parsed.state_dir, FILES: parsed.files_dir}
    folders = {begin: folder for begin, folder in given.items() if folder is not None}
    if bool(folders) + (parsed.root is not None) + parsed.check != 1:
        raise ConfigError("give --state-dir, --files-dir or both; or --root; or --check alone")
    then = ""
    if parsed.root is not None:
        from backup.whole_server import restore_server

        contents, then = restore_server(parsed.backup, parsed.root, Progress())
    elif parsed.check:
        contents = check_backup(parsed.backup, Progress())
    else:
        contents = restore_backup(parsed.backup, folders, Progress())
    made_at = datetime.fromtimestamp(contents.made_at_ms / 1000, UTC)
    told = (
        f"{'verified' if parsed.check else 'restored'}: federation {contents.federation}, "
        f"model {contents.model_version} as of {made_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"{len(contents.entries)} files, {total_bytes(contents.entries) / 1e6:,.1f} MB"
    )
    print(escaped(told))
    if then:
        print(_AFTER.format(made_at=f"{made_at:%Y-%m-%d %H:%M} UTC", then=escaped(then)))
    return 0
