"""`fedtide server ACTION`: what an operator does on the server."""

from __future__ import annotations

import argparse
import importlib

_ACTIONS = {
    "init": (
        "registrar.init_command",
        "make this machine a server: authority, broker, coordinator, registrar",
    ),
    "rotate-key": (
        "registrar.rotate_command",
        "give the coordinator a new key, and shut the old one out",
    ),
    "backup": ("backup.backup_command", "take a backup of the state while everything runs"),
    "restore": ("backup.restore_command", "put a backup back into an empty folder"),
    "package": (
        "coordinator.packaging.command",
        "make one file that installs the client on a device without internet",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, help_text) in _ACTIONS.items():
        description = help_text[0].upper() + help_text[1:]
        action = actions.add_parser(name, help=help_text, description=description)
        importlib.import_module(module).add_arguments(action)


def run(parsed: argparse.Namespace) -> int:
    """Run the action; its exit code."""
    module, _ = _ACTIONS[parsed.action]
    code: int = importlib.import_module(module).run(parsed)
    return code
