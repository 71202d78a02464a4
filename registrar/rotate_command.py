"""`fedtide server rotate-key`: a new key for the coordinator; the old one counts no more."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtide import units
from fedtide.config import load_config
from fedtide.errors import ConfigError
from fedtide.files import write_atomically
from fedtide.identity import KEY_SET_NAME
from fedtide.ownership import as_owner_of
from fedtide.rollover import prepare_rollover
from registrar.layout import Layout
from registrar.office import Office, now_ms, opened

_SYSTEM = Layout(Path("/"), system=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    for flag, path, name in (
        ("--config", _SYSTEM.registrar_toml, "registrar.toml"),
        ("--coordinator-config", _SYSTEM.coordinator_toml, "coordinator.toml"),
    ):
        parser.add_argument(
            flag, type=Path, default=path, metavar="FILE", help=f"{name} (default: {path})"
        )


def run(parsed: argparse.Namespace) -> int:
    """Make the key, let the coordinator take it, and shut the old one out."""
    folder = _identity(parsed.coordinator_config)
    with opened(parsed.config) as office:
        _prepare(office, folder)
        restarted = (
            os.getuid() == 0
            and parsed.coordinator_config == _SYSTEM.coordinator_toml
            and units.systemd_runs()
            and units.is_running("coordinator")
        )
        if restarted:
            with as_owner_of(office.config.broker_dir):
                units.start("coordinator")
        undone = office.enforce(gone=["coordinator"])
    print("the coordinator has a new key; devices learn it when they next come")
    if not restarted:
        print("restart the coordinator now: with its old key it is not let in again")
    for what in undone:
        print(f"BUT {what}")
    return 0


def _prepare(office: Office, folder: Path) -> None:
    state_dir = office.config.state_dir

    def certify(key: Ed25519PublicKey) -> bytes:
        pem = office.authority.sign_role("coordinator", key)
        with as_owner_of(state_dir):
            office.registry.certify_role(pem, now_ms())
        return pem

    with as_owner_of(folder):
        key_set = prepare_rollover(folder, office.topics, office.authority.key, certify)
    # New devices get it with their certificate.
    write_atomically(office.config.identity / KEY_SET_NAME, key_set)


def _identity(path: Path) -> Path:
    """The coordinator's identity, as its configuration names it."""
    named = load_config(path, dict).get("identity")
    if not isinstance(named, str):
        raise ConfigError(
            f"{str(path)!r} has no `identity`: this coordinator has no key",
            hint="--coordinator-config FILE names another coordinator.toml",
        )
    return path.parent / Path(named).expanduser()
