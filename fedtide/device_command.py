"""`fedtide device ...`: on the server who may take part, on a device its joining.

Each action belongs to one of the two sides, which declares it. A device has nothing of the server's
side, and need not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util

_SIDES = ("registrar.device_command", "edge_client.membership.actions")
"""Modules with `add_actions(actions)`; each action sets `perform`: from arguments to exit code."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of both sides, as far as they are installed."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for side in _SIDES:
        if _is_installed(side):
            importlib.import_module(side).add_actions(actions)


def run(parsed: argparse.Namespace) -> int:
    """Do what the action does."""
    code: int = parsed.perform(parsed)
    return code


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is its package
        return False
