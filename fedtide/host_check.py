"""Whether this machine can be relied on: its disk and its clock."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fedtide
from fedtide.checkup import Finding, ok, problem, warning
from fedtide.files import disk_errors_of, open_regular
from fedtide.picture_text import duration

CLOCK_SLACK_S = 120
"""A file may be this much younger than now: another clock wrote it, over a network."""


def check_folder(folder: Path, needed_bytes: int, what: str) -> Iterator[Finding]:
    """Whether `folder` can be written, now and with `needed_bytes` more, for `what`."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        yield problem(f"{str(there)!r} is no folder", "correct state_dir")
        return
    with disk_errors_of(there):
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(there).free
    new = "" if there == folder else " (it will be made)"
    said = f"state folder {str(folder)!r}{new}: {free / 1e6:,.0f} MB free"
    if free < needed_bytes:
        yield problem(
            f"{said}, {needed_bytes / 1e6:,.0f} MB are needed for {what}", "free space on this disk"
        )
    else:
        yield ok(f"{said}, {needed_bytes / 1e6:,.0f} MB needed for {what}")


def check_clock(folder: Path) -> Iterator[Finding]:
    """Whether the time is later than all that is known to have happened before."""
    now_s = time.time()
    known = [Path(fedtide.__file__)]
    if folder.is_dir():
        known += [path for path in folder.iterdir() if path.is_file()]
    newest = max(known, key=lambda path: path.stat().st_mtime)
    ahead_s = newest.stat().st_mtime - now_s
    today = time.strftime("%Y-%m-%d %H:%M", time.localtime(now_s))
    if ahead_s > CLOCK_SLACK_S:
        yield warning(
            f"the clock says {today}, but {str(newest)!r} was written "
            f"{duration(round(ahead_s * 1000))} later: it has been set back, or has no battery",
            "set the clock (timedatectl set-ntp true); certificates cannot be judged without it",
        )
    else:
        yield ok(f"the clock says {today}")


def is_locked(folder: Path) -> bool:
    """Whether a process of ours holds the folder."""
    try:
        file = open_regular(folder / "lock", links=False)
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
