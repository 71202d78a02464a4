"""`fedtide server backup --out FILE`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fedtide.config import load_config
from fedtide.errors import AS_ROOT, ConfigError

ETC = Path("/etc/fedtide")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"coordinator.toml; without it, the whole server of {ETC}",
    )
    parser.add_argument(
        "--registrar",
        type=Path,
        metavar="FILE",
        help="registrar.toml: registry and authority are to be in it, too",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="written when it is whole and verified; one that is there is replaced then",
    )


def run(parsed: argparse.Namespace) -> int:
    """Take a backup; everything may run."""
    from backup.archive import total_bytes
    from backup.progress import Progress
    from backup.sources import COORDINATOR_TOML, IDENTITY, REGISTRAR_TOML, of_file, of_identity
    from backup.taking import take_backup
    from coordinator.config import CoordinatorConfig
    from registrar.config import RegistrarConfig

    config_path, registrar_path = parsed.config, parsed.registrar
    if config_path is None:
        if os.geteuid() != 0:
            raise ConfigError("a backup of the whole server takes root's rights", hint=AS_ROOT)
        config_path, registrar_path = ETC / "coordinator.toml", ETC / "registrar.toml"
    config = load_config(config_path, CoordinatorConfig)
    others = [of_file(COORDINATOR_TOML, config_path)]
    if config.identity is not None:
        others += of_identity(IDENTITY, config.identity)
    registrar = None
    if registrar_path is not None:
        registrar = load_config(registrar_path, RegistrarConfig)
        others.append(of_file(REGISTRAR_TOML, registrar_path))
    contents = take_backup(config, others, parsed.out, Progress(), registrar)
    print(
        f"{parsed.out}: federation {contents.federation}, model {contents.model_version}, "
        f"{len(contents.entries)} files, {total_bytes(contents.entries) / 1e6:,.1f} MB, verified"
    )
    if contents.left_out:
        print(
            f"WARNING: {len(contents.left_out)} stored updates are gone or damaged and not in it; "
            "their rounds cannot be recomputed (`fedtide doctor` says more)"
        )
    if not contents.run_id:
        print("The coordinator has not run yet: neither a model nor its bundle is in it.")
    if registrar is not None:
        told = (
            "IT HOLDS THE AUTHORITY'S PRIVATE KEY: whoever can read it can be the server, or any "
            "device. Keep it as you would keep that key: encrypted, and not on this machine."
        )
        print(told, file=sys.stderr)
    elif config.identity is not None:
        print("It holds the coordinator's private key: keep it secret.", file=sys.stderr)
    return 0
