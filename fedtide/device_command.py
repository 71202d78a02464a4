"""`fedtide device ...`: on the server who may take part, on a device its joining.

Each action belongs to one of the two sides, which declares it.
"""

from __future__ import annotations

import argparse
import importlib

_SIDES = ("registrar.device_command",)
"""Modules with `add_actions(actions)`; each action sets `perform`: from arguments to exit code."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of both sides."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for side in _SIDES:
        importlib.import_module(side).add_actions(actions)


def run(parsed: argparse.Namespace) -> int:
    """Do what the action does."""
    code: int = parsed.perform(parsed)
    return code
