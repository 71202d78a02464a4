"""The system users that services run as: nobody logs in as one, and it owns a folder of its own."""

from __future__ import annotations

import pwd
import re
import subprocess
from pathlib import Path

from fedtide.errors import ConfigError, FedtideError

_NO_SHELL = "/usr/sbin/nologin"
_NAME = r"^[a-z_][a-z0-9_-]{0,31}\Z"
"""What useradd(8) takes everywhere."""


def make_user(name: str, home: Path) -> None:
    """Make the user, unless there is one of this name, whoever it is.

    Raises:
        ConfigError: no user can be called so.
        FedtideError: the system refuses.
    """
    if re.match(_NAME, name) is None:
        raise ConfigError(
            f"{name!r} cannot be a system user's name",
            hint="up to 32 of a-z 0-9 _ -, a letter or '_' first",
        )
    if _account(name) is None:
        _run(
            *("useradd", "--system", "--user-group", "--no-create-home"),
            *("--home-dir", str(home), "--shell", _NO_SHELL, name),
        )


def is_ours(name: str, home: Path) -> bool:
    """Whether the user is one that `make_user` has made for this folder."""
    account = _account(name)
    return account is not None and (account.pw_dir, account.pw_shell) == (str(home), _NO_SHELL)


def remove_user(name: str, home: Path) -> bool:
    """Remove the user if it `is_ours`; whether it was. Its files are somebody else's matter.

    Raises:
        FedtideError: the system refuses, such as while a process of the user's runs.
    """
    if not is_ours(name, home):
        return False
    _run("userdel", name)
    return True


def _account(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _run(*command: str) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        said = str(getattr(exc, "stderr", None) or exc).strip()
        raise FedtideError(f"{' '.join(command)} failed: {said}") from exc
