"""The one tree of errors that a person may see.

    FedtideError
     ├── ConfigError      a configuration file, flag or path is wrong            exit 2
     ├── BundleError      a bundle is damaged, foreign or unsafe                 exit 3
     ├── DataError        local data does not fit the model                      exit 4
     ├── ExportError      a model cannot be exported, or failed verification     exit 5
     ├── BrokerError      the broker is unreachable or refuses us                exit 6
     └── StateError       the state folder is full, locked, damaged or foreign   exit 7

A bad message from the network is never one of these: it is data, and becomes a counted verdict.
Every message names what happened, the offending value and what was expected; `hint` says what to
do next.
"""

import os


class FedtideError(Exception):
    """Base of every error that ends a command with a message instead of a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n\nhint: {self.hint}" if self.hint else message


AS_ROOT = "run this as root: put sudo before the command"


def install_hint(extra: str) -> str:
    """How to install what an extra of ours brings."""
    return f"in a copy of fedtide's repository: pip install '.[{extra}]'"


class ConfigError(FedtideError):
    """A configuration file, flag or path is wrong."""

    exit_code = 2


def denied(error: PermissionError) -> ConfigError:
    """What the system does not let this user do, whoever tried it."""
    what = "what this command needs" if error.filename is None else repr(str(error.filename))
    # Root may have become that one, or have let a service look in its place.
    user_id = os.geteuid()
    hint = f"let this user (id {user_id}) use it, or {AS_ROOT}" if user_id else None
    return ConfigError(f"{what} is not yours to use: {error.strerror or error}", hint=hint)


class BundleError(FedtideError):
    """A bundle is damaged, foreign or unsafe."""

    exit_code = 3


class GraphFailedError(BundleError):
    """A graph failed on a batch. The text is onnxruntime's and may quote values of the data."""


class DataError(FedtideError):
    """Local data does not fit the model."""

    exit_code = 4


class ExportError(FedtideError):
    """A model cannot be exported, or the export failed its own verification."""

    exit_code = 5


class VerificationError(ExportError):
    """A runtime computes something else than PyTorch did when the bundle was exported."""


class BrokerError(FedtideError):
    """The broker is unreachable or refuses us."""

    exit_code = 6


class UnansweredError(BrokerError):
    """The broker says nothing, for as long as it was waited for."""


class StateError(FedtideError):
    """The state folder is full, locked, damaged or belongs to something else."""

    exit_code = 7

    def __init__(self, message: str, *, hint: str | None = None, no_room: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.no_room = no_room
        """The disk is full, or a quota is used up: it may pass."""


class DamagedError(StateError):
    """What was saved is on the disk, and cannot be read as what it was."""
