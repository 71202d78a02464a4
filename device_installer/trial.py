"""A new version has to show that the service comes up with it, before it becomes the one in use.

The service runs the new version by a drop-in in /run, which no power cut survives, while a timer of
systemd's stands by to undo that if this program is killed.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from device_installer.client_state import give_back, keep
from device_installer.layout import SERVICE, Layout, remove
from device_installer.telling import Refused, say

_SETTLES_S = 10
"""For so long a service that came up has to stay up."""


@contextmanager
def trial_of(name: str, layout: Layout, come_up_s: float) -> Iterator[None]:
    """Let the device's service run version `name`, and the body follow if it comes up."""
    command = f"/opt/fedtide/versions/{name}"
    lines = layout.unit.read_text().splitlines() if layout.unit.exists() else []
    starts = [line for line in lines if line.startswith("ExecStart=") and "/current/" in line]
    if not layout.has_systemd or not starts or not is_wanted():
        yield
        return
    say(f"starting {SERVICE} with it")
    layout.trial.mkdir()
    try:
        rescue = [f"{command}/bin/python", "-I", "-m", "device_installer", "--end-trial"]
        _stand_by(come_up_s + 60, rescue)
        systemd("systemctl", "stop", SERVICE)
        _keep_state(layout)
        changed = [line.replace("/opt/fedtide/current", command) for line in starts]
        layout.drop_in.parent.mkdir(parents=True, exist_ok=True)
        layout.drop_in.write_text("\n".join(["[Service]", "ExecStart=", *changed, ""]))
        systemd("systemctl", "daemon-reload")
        if (reason := _start(come_up_s)) is not None:
            raise Refused(
                f"{SERVICE} did not come up with the new version: {reason}",
                "the version before is in use again; send these lines to who made the file",
                8,
            )
        yield
        remove(layout.trial)
    finally:
        end_trial(layout, come_up_s)
        systemd("systemctl", "stop", "fedtide-trial.timer")


def end_trial(layout: Layout, come_up_s: float) -> None:
    """Leave the service with what `current` names. If a trial was not passed, the service is
    started again, with the state that it had if it cannot read what the other version saved."""
    if layout.drop_in.exists():
        layout.drop_in.unlink()
        with suppress(OSError):
            layout.drop_in.parent.rmdir()
        systemd("systemctl", "daemon-reload")
    if not layout.trial.is_dir():
        return
    systemd("systemctl", "stop", SERVICE)
    reason, kept = _start(come_up_s), layout.trial / "state"
    if reason is not None and kept.is_dir():
        say(f"the version before cannot go on: {reason}; it gets back the state that it had")
        systemd("systemctl", "stop", SERVICE)
        try:
            give_back(kept, layout)
        except OSError as exc:  # whatever the client has put there keeps nobody from going on
            say(f"the state cannot be given back: {exc}")
        reason = _start(come_up_s)
    say(f"the version before is running again{f', but {reason}' if reason else ''}")
    remove(layout.trial)


def _stand_by(delay_s: float, command: list[str]) -> None:
    """Let systemd run `command` unless the timer is stopped before."""
    systemd("systemctl", "stop", "fedtide-trial.timer")
    timer = ["--collect", "--unit=fedtide-trial", f"--on-active={delay_s:g}"]
    done = systemd("systemd-run", *timer, *command)
    if done.returncode:
        raise Refused(f"systemd takes no timer: {done.stderr.strip()}", "nothing was changed", 8)


def _keep_state(layout: Layout) -> None:
    beside = layout.trial / "state.tmp"
    beside.mkdir(mode=0o700)
    keep(layout, beside)
    beside.rename(layout.trial / "state")


def is_wanted() -> bool:
    """Whether the service runs, or should."""
    state = systemd("systemctl", "is-active", SERVICE).stdout.strip()
    return state in ("active", "activating", "reloading", "failed")


def _start(come_up_s: float) -> str | None:
    """Start the service; why it did not come up and stay up, or None."""
    systemd("systemctl", "reset-failed", SERVICE)
    try:
        done = systemd("systemctl", "start", SERVICE, timeout_s=come_up_s)
    except subprocess.TimeoutExpired:
        return f"not within {come_up_s:g} s" + _journal()
    if done.returncode:
        return done.stderr.strip() + _journal()
    wait = threading.Event()
    for _ in range(_SETTLES_S):
        wait.wait(1)
        if systemd("systemctl", "is-active", SERVICE).stdout.strip() != "active":
            return f"it ended within {_SETTLES_S} s" + _journal()
    return None


def _journal() -> str:
    lines = systemd("journalctl", "-u", SERVICE, "-n", "8", "-o", "cat", "--no-pager").stdout
    return f"\n{lines.rstrip()}" if lines.strip() else ""


def systemd(*command: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    """Ask systemd."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
