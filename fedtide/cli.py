"""The one command `fedtide`. Each sub-command is imported only when it is used.

argparse, because this also runs on the device, where every dependency has to earn its place
(docs/adr/0006-dependencies.md).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fedtide import __version__
from fedtide.errors import ConfigError, FedtideError


class _Command(NamedTuple):
    module: str
    help: str
    extra: str


_COMMANDS = {
    "export": _Command("export.command", "turn a PyTorch model into a bundle", "export"),
    "coordinator": _Command("coordinator.command", "run a federation's coordinator", "coordinator"),
    "client": _Command("edge_client.command", "run the client on this device", "client"),
    "models": _Command("coordinator.models_command", "list and export models", "coordinator"),
    "demo": _Command("demo.command", "a whole federation on this machine", "demo"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; its exit code. Errors of the user's make become messages."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except FedtideError as exc:
        print(f"fedtide: error: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        print("fedtide: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fedtide", description="Federated learning on devices that come and go."
    )
    parser.add_argument("--version", action="version", version=f"fedtide {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help.capitalize())
        if name == chosen:
            _load(command).add_arguments(sub)
    parsed = parser.parse_args(arguments)
    return int(_load(_COMMANDS[parsed.command]).run(parsed))


def _load(command: _Command) -> _CommandModule:
    try:
        module: _CommandModule = importlib.import_module(command.module)  # type: ignore[assignment]
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] == command.module.split(".")[0]:
            raise
        raise ConfigError(
            f"this command needs the Python package {exc.name!r}, which is not installed",
            hint=f"pip install 'fedtide[{command.extra}]'",
        ) from exc
    return module


class _CommandModule:
    """What a command's module offers."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare flags."""

    @staticmethod
    def run(parsed: argparse.Namespace) -> int:
        """Do it; the exit code."""
        raise AssertionError(parsed)
