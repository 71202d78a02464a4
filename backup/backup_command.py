"""`fedtide server backup --config coordinator.toml --out FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtide.config import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="coordinator.toml"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="written when it is whole and verified; one that is there is replaced then",
    )


def run(parsed: argparse.Namespace) -> int:
    """Take a backup; the coordinator may run."""
    from backup.archive import total_bytes
    from backup.progress import Progress
    from backup.taking import of_file, take_backup
    from coordinator.config import CoordinatorConfig

    config = load_config(parsed.config, CoordinatorConfig)
    others = [of_file("files/coordinator.toml", parsed.config)]
    contents = take_backup(config, others, parsed.out, Progress())
    print(
        f"{parsed.out}: federation {contents.federation}, model {contents.model_version}, "
        f"{len(contents.entries)} files, {total_bytes(contents.entries) / 1e6:,.1f} MB, verified"
    )
    if contents.left_out:
        print(
            f"WARNING: {len(contents.left_out)} stored updates are gone or damaged and not in it; "
            "their rounds cannot be recomputed (`fedtide doctor` says more)"
        )
    return 0
