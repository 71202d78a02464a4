"""`fedtide server restore FILE --state-dir DIR`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from fedtide.errors import ConfigError
from fedtide.logs import escaped


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
        "--check", action="store_true", help="read and verify it, and restore nothing"
    )


def run(parsed: argparse.Namespace) -> int:
    """Restore, or check."""
    from backup.archive import total_bytes
    from backup.progress import Progress
    from backup.restoring import FILES, STATE, check_backup, restore_backup

    given = {STATE: parsed.state_dir, FILES: parsed.files_dir}
    folders = {begin: folder for begin, folder in given.items() if folder is not None}
    if bool(folders) == parsed.check:
        raise ConfigError("give --state-dir, --files-dir or both; or --check alone")
    if parsed.check:
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
    return 0
