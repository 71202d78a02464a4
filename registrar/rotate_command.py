"""`fedtide server rotate-key`: a new key for the coordinator; the old one counts no more."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtide import units
from fedtide.config import load_config
from fedtide.errors import ConfigError, StateError
from fedtide.files import disk_errors_of, read_regular, write_atomically
from fedtide.identity import KEY_SET_NAME, load_identity, require_folder
from fedtide.keys import public_bytes
from fedtide.ownership import as_owner_of
from fedtide.rollover import prepare_rollover
from registrar.layout import Layout
from registrar.office import Office, now_ms, opened
from registrar.records import Certificate

_SYSTEM = Layout(Path("/"), system=True)
_ROLE = "coordinator"
_HINT = "--coordinator-config FILE names another coordinator.toml"


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
    settings = load_config(parsed.coordinator_config, dict)  # as who we are, not the registrar
    with opened(parsed.config) as office:
        _replace(office, _identity(office, parsed.coordinator_config, settings))
        restarted = (
            os.getuid() == 0
            and parsed.coordinator_config == _SYSTEM.coordinator_toml
            and units.systemd_runs()
            and units.is_running("coordinator")
        )
        try:
            if restarted:
                with as_owner_of(office.config.broker_dir):
                    units.start("coordinator")
        finally:  # whether or not it starts, the old key's time is over
            undone = office.enforce(gone=[_ROLE])
    print("the coordinator has a new key; devices learn it when they next come")
    if not restarted:
        print("restart the coordinator now: with its old key it is not let in again")
    for what in undone:
        print(f"BUT {what}")
    return 0


def _replace(office: Office, folder: Path) -> None:
    """The old key counts until there is a whole next one: cut short, the coordinator goes on."""
    state_dir, ours = office.config.state_dir, office.config.identity / KEY_SET_NAME
    newest: list[Certificate] = []

    def certify(key: Ed25519PublicKey) -> bytes:
        pem = office.authority.sign_role(_ROLE, key)
        with as_owner_of(state_dir):
            newest.append(office.registry.add_role(pem, now_ms()))
        return pem

    authority = office.authority
    with disk_errors_of(ours.parent):
        known = read_regular(ours)
    try:
        with disk_errors_of(folder), as_owner_of(folder):
            key_set = prepare_rollover(
                folder, office.topics, authority.key, authority.certificate_pem, certify, known
            )
    except StateError as exc:
        raise StateError(
            f"{exc.args[0]}; the old key still counts",
            hint=f"see to it that the {_ROLE} can write there, or move {str(folder)!r} away and "
            "make an empty folder of the same owner, mode 700; then repeat this",
            no_room=exc.no_room,
        ) from exc
    # New devices get it with their certificate.
    write_atomically(ours, key_set)
    office.registry.revoke_others(newest[-1], now_ms())


def _identity(office: Office, path: Path, settings: dict[str, object]) -> Path:
    """The folder of the coordinator's identity, as the settings in `path` name it. They are root's
    and decide; what is in the folder does not: whoever stole the key may have been there.

    Raises:
        ConfigError: they are of no coordinator, or not of this registrar's.
    """
    named, members = settings.get("identity"), settings.get("members")
    if not isinstance(named, str):
        raise ConfigError(
            f"{str(path)!r} has no `identity`: this coordinator has no key", hint=_HINT
        )
    folder, ours = _place(path, named), office.config
    if folder == ours.identity:
        raise ConfigError(
            f"the identity of {str(path)!r} is the registrar's, not the {_ROLE}'s", hint=_HINT
        )
    shared = isinstance(members, str) and _place(path, members) == ours.members
    if settings.get("federation") != ours.federation or not shared:
        raise ConfigError(
            f"the {_ROLE} of {str(path)!r} is not of the federation {ours.federation!r} of this "
            f"registrar, whose `members` is {str(ours.members)!r}",
            hint=f"{_HINT}, --config another registrar.toml",
        )
    with disk_errors_of(folder), as_owner_of(folder):
        require_folder(folder)
        try:
            identity = load_identity(folder)
        except ConfigError as exc:
            foreign = exc.args[0]
        else:
            foreign = f"it is that of {identity.name!r}" if identity.name != _ROLE else ""
            if identity.authority != public_bytes(office.authority.key):
                foreign = "another authority has signed it"
    if foreign:
        print(f"what the {_ROLE} has is of no use, and is replaced: {foreign}")
    return folder


def _place(config: Path, named: str) -> Path:
    """Where a path in `config` leads; its last part, which a service may replace, as it is.

    Raises:
        ConfigError: no path could be that.
    """
    try:
        path = config.parent / Path(named).expanduser()
        return path.parent.resolve() / path.name
    except (RuntimeError, ValueError) as exc:  # nobody's home, links in a circle, a zero byte
        raise ConfigError(f"{str(config)!r}: {named!r} is no path: {exc}", hint=_HINT) from exc
