"""Users of services: made once, and removed only if they are ours."""

from __future__ import annotations

import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedtide import system_user
from fedtide.errors import ConfigError, FedtideError
from fedtide.system_user import is_ours, make_user, remove_user

HOME = Path("/var/lib/fedtide/client")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What would be run; `useradd` adds to the known accounts."""
    accounts: dict[str, pwd.struct_passwd] = {}
    said: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        said.append(command)
        if command[0] == "useradd":
            home, shell = command[command.index("--home-dir") + 1], command[-2]
            entry = (command[-1], "x", 990, 990, "", home, shell)
            accounts[command[-1]] = pwd.struct_passwd(entry)

    def account(name: str) -> pwd.struct_passwd | None:
        return accounts.get(name)

    monkeypatch.setattr(system_user, "_run", run)
    monkeypatch.setattr(system_user, "_account", account)
    return said


def test_a_user_is_made_once_without_a_shell_and_removed_again(
    commands: list[tuple[str, ...]],
) -> None:
    make_user("fedtide", HOME)
    make_user("fedtide", HOME)
    assert is_ours("fedtide", HOME)
    assert not is_ours("fedtide", HOME / "other")
    assert not remove_user("fedtide", HOME / "other")
    assert remove_user("fedtide", HOME)
    assert [command[0] for command in commands] == ["useradd", "userdel"]
    assert "--system" in commands[0]


@pytest.mark.parametrize("name", ["", "-x", "Fed", "a b", "x" * 33, "a\n"])
def test_no_user_is_called_so(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a system user's name"):
        make_user(name, HOME)


def test_somebody_elses_account_is_left_alone() -> None:
    assert not remove_user("root", HOME)
    assert not remove_user("nobody-of-this-name", HOME)


def test_what_the_system_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "useradd", stderr="cannot lock /etc/passwd\n")

    monkeypatch.setattr(subprocess, "run", refuses)
    with pytest.raises(FedtideError, match="cannot lock /etc/passwd"):
        make_user("fedtide-of-nobody", HOME)
