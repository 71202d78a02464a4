"""Where everything is on a device, and how it is changed at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SERVICE = "fedtide-client.service"


class Layout:
    """Where everything is, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "opt/fedtide"
        self.versions = self.home / "versions"
        self.current = self.home / "current"
        self.previous = self.home / "previous"
        self.trial = self.home / "trial"
        self.uninstall = self.home / "uninstall"
        self.command = root / "usr/local/bin/fedtide"
        self.config = root / "etc/fedtide/client.toml"
        self.server = root / "etc/fedtide/registrar.toml"
        self.state = root / "var/lib/fedtide/client/state"
        self.unit = root / "etc/systemd/system" / SERVICE
        self.drop_in = root / "run/systemd/system" / f"{SERVICE}.d" / "trial.conf"
        self.has_systemd = (root / "run/systemd/system").is_dir()

    def is_ours(self, link: Path) -> bool:
        """Whether `link` was made here."""
        return link.is_symlink() and str(link.readlink()).startswith("/opt/fedtide/")

    def in_use(self) -> str | None:
        """Name of the version that `current` names, if it is there."""
        if not self.current.is_symlink() or not self.current.is_dir():
            return None
        return self.current.readlink().name


def write_script(path: Path, python: str, words: str) -> None:
    """A command that works wherever its folder is; `python` is relative to that."""
    text = (
        f'#!/bin/sh\nhere=$(dirname "$(readlink -f "$0")")\nexec "$here/{python}" -I {words} "$@"\n'
    )
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text)
    beside.chmod(0o755)
    beside.rename(path)


def link(link: Path, target: str) -> None:
    """Make or replace a link at once."""
    beside = link.with_name(f"{link.name}.tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.rename(link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(*paths: Path) -> None:
    """Remove files, links and whole folders; it is no matter if they are not there."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
