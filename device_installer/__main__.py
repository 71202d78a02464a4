"""Installs, updates and removes the client on a device: what the file that `fedtide server package`
makes runs, and /opt/fedtide/uninstall.

    /opt/fedtide/versions/NAME     one version, complete: it was renamed to this when it was
    /opt/fedtide/current           a link to the one in use, replaced as the last step of all
    /opt/fedtide/previous          a link to the one before
    /opt/fedtide/fedtide           the command, for the one in use
    /opt/fedtide/trial             there while a new version has to show that it comes up

A new version is unpacked and checked beside the old one, shows that it comes up (`trial.py`), and
takes over by one rename. Whatever happens before that, the old version is what runs in the end
(docs/adr/0025).
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from device_installer.client_state import owner_of
from device_installer.layout import SERVICE, Layout, link, remove, sync_folder, write_script
from device_installer.package import Package
from device_installer.telling import Refused, say
from device_installer.trial import end_trial, is_wanted, systemd, trial_of

_ROOM = 1.25, 16_000_000
"""Of the wheels' content: what Python compiles comes to it, and blocks of the disk; and bytes."""
_CHECK_S = 600
_TURN_ON = f"sudo systemctl enable --now {SERVICE}"


def install(package: Package, layout: Layout, come_up_s: float) -> None:
    """Make the package's version the one in use."""
    package.check_machine()
    package.verify()
    name = package.name
    if (layout.command.is_symlink() or layout.command.exists()) and not layout.is_ours(
        layout.command
    ):
        raise _other_command(layout)
    end_trial(layout, come_up_s)
    remove(*layout.versions.glob("*.tmp"))
    folder = layout.versions / name
    if not (folder.is_dir() and _fault_of(folder, layout) is None):
        _build(package, folder, layout)
    try:
        if layout.in_use() != name:
            with trial_of(name, layout, come_up_s):
                if (before := layout.in_use()) is not None:
                    link(layout.previous, f"versions/{before}")
                link(layout.current, f"versions/{name}")
    finally:
        _prune(layout)
    layout.command.parent.mkdir(parents=True, exist_ok=True)
    # Through `current`, so that a unit which names its Python keeps to it after an update.
    write_script(layout.home / "fedtide", "current/bin/python", "-m fedtide")
    link(layout.command, "/opt/fedtide/fedtide")
    write_script(layout.uninstall, "current/bin/python", "-m device_installer --uninstall")
    say(f"installed: fedtide {package.manifest['version']} ({name}); the command is fedtide")
    if layout.has_systemd and layout.unit.exists() and not is_wanted():
        say(f"{SERVICE} is off; to have it run, now and at each boot: {_TURN_ON}")


def _other_command(layout: Layout) -> Refused:
    if layout.server.exists():
        return Refused(
            f"this machine is a server: {str(layout.server)!r} is there, and its own fedtide",
            "that is a client, too: sudo fedtide device join; this file is for other machines",
        )
    return Refused(
        f"there is another {str(layout.command)!r}",
        "remove what it belongs to: pip uninstall fedtide, or pipx uninstall fedtide",
    )


def _prune(layout: Layout) -> None:
    """Leave the version in use and the one before. A name stands for a whole version, so one that
    is being removed loses it first."""
    links = [path for path in (layout.current, layout.previous) if path.is_symlink()]
    kept = {path.readlink().name for path in links}
    for path in layout.versions.iterdir():
        if path.name not in kept:
            remove(path.rename(path.with_name(f"{path.name}.tmp")))


def _build(package: Package, folder: Path, layout: Layout) -> None:
    """Unpack and check a version beside the others; `folder` is there only when it is complete."""
    needed = int(package.content["installed_bytes"] * _ROOM[0]) + _ROOM[1]
    layout.versions.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(layout.versions).free
    if free < needed:
        raise Refused(
            f"{needed / 1e6:.0f} MB are needed below /opt, and {free / 1e6:.0f} MB are free",
            "free space, then install again; nothing was changed",
            7,
        )
    beside = folder.with_name(f"{folder.name}.tmp")
    try:
        venv.EnvBuilder(symlinks=True).create(beside)
        packages = beside / "lib" / f"python{package.python}" / "site-packages"
        for described, wheel in package.wheels():
            say(f"unpacking {described['name']} {described['version']}")
            wheel.extractall(packages)
        (beside / "manifest.json").write_text(json.dumps(package.manifest, indent=1))
        say("checking it")
        if (fault := _fault_of(beside, layout)) is not None:
            raise Refused(
                f"fedtide {package.manifest['version']} does not run here: {fault}",
                "nothing was changed; the last lines above say why it does not",
                8,
            )
        os.sync()
        if folder.exists():  # it is damaged
            folder.rename(folder.with_name(f"{folder.name}.damaged.tmp"))
        beside.rename(folder)
        sync_folder(layout.versions)
    except BaseException:
        remove(beside)
        raise


def _fault_of(folder: Path, layout: Layout) -> str | None:
    """What is wrong with a version, tried with this device's configuration and saved state. Those
    are read with the rights of the client's user, who cannot keep what Python compiles: root does
    that before, and reads nothing of theirs."""
    command = [str(folder / "bin/python"), "-I", "-m", "edge_client.self_check"]
    fault = _fault_that_says(command)
    if fault is not None or not layout.config.exists():
        return fault
    return _fault_that_says([*command, "--config", str(layout.config)], owner_of(layout))


def _fault_that_says(command: list[str], owner: tuple[int, int] | None = None) -> str | None:
    """Why a self-check fails that has the rights of `owner` (user and group), or ours."""
    rights: dict[str, Any] = {}
    if owner is not None:
        rights = {"user": owner[0], "group": owner[1], "extra_groups": ()}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
            check=False,
            **rights,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    if done.returncode == 0:
        return None
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:]) or (
        f"its self-check ended with {done.returncode}"
    )


def uninstall(layout: Layout, *, purge: bool) -> None:
    """Remove what was installed; with `purge` also what joining made."""
    end_trial(layout, 60)
    joined = layout.config.exists() or layout.unit.exists()
    if joined and purge:
        leave = [str(layout.home / "fedtide"), "device", "leave"]
        leave += [] if layout.has_systemd else ["--root", str(layout.root)]
        if subprocess.run(leave, check=False).returncode:
            raise Refused("`fedtide device leave` failed; nothing was removed", "see above", 1)
    elif layout.unit.exists() and layout.has_systemd:
        systemd("systemctl", "disable", "--now", SERVICE)
    if layout.is_ours(layout.command):
        layout.command.unlink()
    remove(layout.current, layout.previous, layout.home)
    if joined and not purge:
        say(
            "kept: what joining made: configuration, identity and state (/etc/fedtide, "
            f"/var/lib/fedtide), the service {SERVICE}, which is off now, and its user"
        )
        say(f"to go on with it: install again, then {_TURN_ON}")
        say("to remove that, too: install again, then fedtide device leave, then uninstall")
    say("removed: fedtide")


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    layout.home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(layout.home, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Refused("another installer is at work here", "wait until it has ended") from None
    try:
        yield
    finally:
        os.close(descriptor)
        for folder in (layout.versions, layout.home):
            with suppress(OSError):  # nothing was installed, or everything removed
                folder.rmdir()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the flags say; the exit code."""
    parser = argparse.ArgumentParser(prog="sh FILE", description="Install fedtide's client.")
    parser.add_argument("--root", type=Path, default=Path("/"), help="install below this folder")
    parser.add_argument("--uninstall", action="store_true", help="remove it; identity is kept")
    parser.add_argument("--purge", action="store_true", help="with --uninstall: leave, too")
    parser.add_argument(
        "--come-up-s", type=float, default=120, metavar="S", help="of a new version"
    )
    parser.add_argument("--end-trial", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    layout = Layout(parsed.root)
    os.umask(0o022)
    try:
        if os.geteuid() != 0 and parsed.root == Path("/"):
            raise Refused("this needs root", "sudo sh FILE")
        with _locked(layout):
            if parsed.end_trial:
                end_trial(layout, parsed.come_up_s)
            elif parsed.uninstall:
                uninstall(layout, purge=parsed.purge)
            else:
                install(Package(Path(sys.argv[0])), layout, parsed.come_up_s)
    except Refused as exc:
        print(f"fedtide: error: {exc}\n\nhint: {exc.hint}", file=sys.stderr)
        return exc.exit_code
    except (OSError, subprocess.SubprocessError) as exc:
        no_room = getattr(exc, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        hint = "free space, then repeat this" if no_room else "repeat this when it is mended"
        print(f"fedtide: error: {exc}\n\nhint: {hint}", file=sys.stderr)
        return 7
    return 0


if __name__ == "__main__":
    sys.exit(main())
