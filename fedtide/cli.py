"""The one command `fedtide`. Each sub-command is imported only when it is used.

argparse, because this also runs on the device, where every dependency has to earn its place
(docs/adr/0006-dependencies.md).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple, Protocol

from fedtide import __version__
from fedtide.errors import ConfigError, FedtideError, denied, install_hint
from fedtide.failpoints import arm_from_environment
from fedtide.logs import escaped, log_end


class _Command(NamedTuple):
    module: str
    help: str
    extra: str


_COMMANDS = {
    "export": _Command("export.command", "turn a PyTorch model into a bundle", "export"),
    "inspect": _Command("edge_client.inspect_command", "show what a bundle holds", "client"),
    "verify": _Command(
        "edge_client.verify_command", "compare a bundle's runtimes here with PyTorch", "client"
    ),
    "coordinator": _Command("coordinator.command", "run a federation's coordinator", "coordinator"),
    "server": _Command("fedtide.server_command", "set up and look after a server", "coordinator"),
    "registrar": _Command(
        "registrar.command", "let devices join and renew their certificates", "coordinator"
    ),
    "client": _Command("edge_client.command", "run the client on this device", "client"),
    "device": _Command(
        "fedtide.device_command", "server: add, list, revoke; device: join, leave", "client"
    ),
    "models": _Command("coordinator.models_command", "list, export, verify models", "coordinator"),
    "status": _Command("fedtide.status_command", "show fleet and round, live", "client"),
    "doctor": _Command(
        "fedtide.doctor_command", "find out what is wrong, and what to do", "client"
    ),
    "simulate": _Command(
        "simulator.command", "compare policies on a fleet under virtual time", "simulate"
    ),
    "repro": _Command(
        "repro.command", "run the experiments of a published paper again", "simulate"
    ),
    "demo": _Command("demo.command", "a whole federation on this machine", "demo"),
}

_OURS = (
    "fedtide",
    "edge_client",
    "device_installer",
    "coordinator",
    "registrar",
    "backup",
    "export",
    "simulator",
    "repro",
    "demo",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; its exit code. Errors of the user's make become messages."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except FedtideError as exc:
        return _ended(exc)
    except PermissionError as exc:
        return _ended(denied(exc))
    except KeyboardInterrupt:
        print("fedtide: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _ended(error: FedtideError) -> int:
    if not log_end(str(error)):
        # Much of a message is what a file or another program said.
        lines = [escaped(line) for line in str(error).split("\n")]
        print("fedtide: error:", "\n".join(lines), file=sys.stderr)
    return error.exit_code


def _run(arguments: list[str]) -> int:
    arm_from_environment()
    _check_empty(arguments)
    parser = argparse.ArgumentParser(
        prog="fedtide", description="Federated learning on devices that come and go."
    )
    parser.add_argument("--version", action="version", version=f"fedtide {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in _COMMANDS.items():
        description = command.help[0].upper() + command.help[1:]
        sub = commands.add_parser(name, help=command.help, description=description)
        if name == chosen:
            with _packages_of(command):
                _load(command).add_arguments(sub)
    parsed = parser.parse_args(arguments)
    command = _COMMANDS[parsed.command]
    with _packages_of(command):
        return _load(command).run(parsed)


def _check_empty(arguments: Sequence[str]) -> None:
    """An empty path would be the current folder."""
    for before, word in pairwise(("", *arguments)):
        if not word or (word.startswith("--") and word.endswith("=")):
            flag = word.rstrip("=") or (before if before.startswith("-") else "an argument")
            raise ConfigError(f"{flag} is empty", hint="is a variable of the shell's not set?")


class _CommandModule(Protocol):
    """What a command's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare flags."""

    def run(self, parsed: argparse.Namespace) -> int:
        """Do it; the exit code."""


def _load(command: _Command) -> _CommandModule:
    module: _CommandModule = importlib.import_module(command.module)
    return module


@contextmanager
def _packages_of(command: _Command) -> Iterator[None]:
    """A package that is not installed is a message; one of our own modules is a bug.

    Raises:
        ConfigError: naming the package and the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] in _OURS:
            raise
        raise ConfigError(
            f"this command needs the Python package {exc.name!r}, which is not installed",
            hint=install_hint(command.extra),
        ) from exc
