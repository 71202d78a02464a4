"""What a device installs, read from `pyproject.toml`, so that no second list can go stale."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def device_requirements(*, oldest: bool = False) -> list[str]:
    """What the extras `client` and `test` require; with `oldest`, the former at their floor."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    client = [*project["dependencies"], *extras["client"]]
    if oldest:
        client = [requirement.replace(">=", "==") for requirement in client]
    return [*client, *extras["test"]]


def requirements(*names: str) -> list[str]:
    """What fedtide with these extras requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return sorted({*project["dependencies"], *(each for name in names for each in extras[name])})


def packages() -> list[str]:
    """Top-level packages of the distribution."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return [pattern.rstrip("*") for pattern in settings["packages"]["find"]["include"]]
