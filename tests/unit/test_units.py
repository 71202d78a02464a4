"""The units of the four services, as systemd's own tools judge them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from fedtide.errors import ConfigError, FedtideError
from fedtide.units import (
    Role,
    check_reachable,
    install,
    remove,
    render,
    start,
    try_out,
    unit_for,
    unit_name,
)

ROLES: tuple[Role, ...] = get_args(Role)
ANALYZE = shutil.which("systemd-analyze")
EXPOSURE_MAX = {"client": 2.0, "coordinator": 2.0, "registrar": 2.0, "broker": 2.0}
"""Of 10, as `systemd-analyze security` counts."""

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed here")


def unit_of(role: Role, **more: object) -> str:
    settings: dict[str, object] = {
        "user": "fedtide",
        "config": Path("/etc/fedtide/x.toml"),
        "writable": [Path("/var/lib")],
        "python": Path("/bin/sh"),
        **more,
    }
    return render(role, **settings)  # type: ignore[arg-type]


def setting(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_has_nothing_left_to_fill_in(role: Role) -> None:
    unit = unit_of(role)
    assert not re.search(r"@(?!system-service|privileged)\w+", unit)
    assert setting(unit, "User") == ["fedtide"]
    assert setting(unit, "ReadWritePaths") == ["/var/lib"]


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_systemd_finds_nothing_wrong(role: Role, tmp_path: Path) -> None:
    path = install(role, unit_of(role), tmp_path)
    done = analyze("verify", "--man=no", str(path))
    missing = r".*Command /usr/sbin/mosquitto is not executable.*"
    said = done.stderr.splitlines()
    assert [line for line in said if not re.match(missing, line)] == []


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_exposure_is_low(role: Role, tmp_path: Path) -> None:
    assert exposure(install(role, unit_of(role), tmp_path)) <= EXPOSURE_MAX[role]


@needs_systemd
def test_exposure_is_seen_to_rise(tmp_path: Path) -> None:
    careless = re.sub(r"SystemCallFilter=.*|Protect.*|CapabilityBounding.*", "", unit_of("client"))
    assert exposure(install("client", careless, tmp_path)) > EXPOSURE_MAX["client"]


def exposure(path: Path) -> float:
    done = analyze("security", "--offline=yes", "--no-pager", str(path))
    found = re.search(r"exposure level for .*: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *words], capture_output=True, text=True, check=False)


def test_only_what_lies_in_a_home_has_to_be_named() -> None:
    readable = ["/home/pi/data", "/srv/data", "/root/x", "/home/pi/data", "/home/pi/a/b.npz"]
    unit = unit_of("client", readable=[Path(path) for path in readable])
    # A file with its folder, in which another one may take its place; but nobody's whole home.
    assert setting(unit, "BindReadOnlyPaths") == ["-/home/pi/data", "-/root/x", "-/home/pi/a"]


@pytest.mark.parametrize(("version", "count"), [(252, 0), (254, 1)])
def test_an_old_systemd_is_not_told_what_it_does_not_know(
    version: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedtide.units.systemd_version", lambda: version)
    unit = unit_of("client")
    assert len(setting(unit, "RestartSteps")) == len(setting(unit, "RestartMaxDelaySec")) == count
    assert setting(unit, "RestartSec") == ["10"]


def test_the_client_may_not_listen() -> None:
    unit = unit_of("client")
    assert "~bind listen accept accept4" in setting(unit, "SystemCallFilter")
    assert setting(unit, "SocketBindDeny") == ["any"]


def test_odd_paths_stand_in_a_unit_as_what_they_are() -> None:
    unit = unit_of("client", config=Path('/etc/a "b" 100%/$x.toml'))
    (command,) = setting(unit, "ExecStart")
    assert command.endswith(r'--config "/etc/a \"b\" 100%%/$$x.toml"')


@pytest.mark.parametrize("path", ["/home/a\nExecStartPre=/bin/true", "/home/a:b"])
def test_a_path_that_would_mean_something_else_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a systemd unit"):
        unit_of("client", readable=[Path(path)])


def test_removing_takes_added_settings_along(tmp_path: Path) -> None:
    path = install("client", unit_of("client"), tmp_path)
    assert path.stat().st_mode & 0o777 == 0o644
    added = tmp_path / f"{unit_name('client')}.d"
    added.mkdir()
    (added / "override.conf").touch()
    remove("client", tmp_path)
    remove("client", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_installation_in_a_home_is_refused() -> None:
    with pytest.raises(ConfigError, match="it sees no homes") as refused:
        check_reachable("nobody", Path("/root/.local/pipx/venvs/fedtide/bin/python"))
    assert "PIPX_HOME=/opt/pipx" in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run something as somebody else")
def test_who_cannot_run_fedtide_is_told() -> None:
    with pytest.raises(ConfigError, match="no user 'fedtide-of-nowhere'"):
        check_reachable("fedtide-of-nowhere", Path("/bin/true"))
    with pytest.raises(ConfigError, match="cannot run '/bin/false': exit code 1"):
        check_reachable("nobody", Path("/bin/false"))


def test_a_start_that_fails_tells_its_own_log_not_that_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {
        "systemctl": "[ $1 != restart ]",
        "journalctl": "seq 1 30; case $* in *--since\\ @[1-9]*) ;; *) echo old ;; esac",
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(FedtideError, match=r"(?s)does not start:\n21\n.*\n30\n\n"):
        start("client")


def fake_systemd(folder: Path, unit: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that has the unit; the file that says what was run."""
    (folder / "unit").write_text(unit)
    ran = folder / "ran"
    commands = {"systemctl": f"cat {folder}/unit", "systemd-run": f'printf "%s\\n" "$@" > {ran}'}
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("fedtide.units.systemd_runs", lambda: True)
    monkeypatch.setattr("os.getuid", lambda: 0)
    return ran


def test_what_was_added_to_a_unit_holds_when_it_is_tried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `systemctl edit` adds it: after the unit, in sections of its own."""
    added = "\n# x\n[Unit]\nWants=x\n[Service]\nBindReadOnlyPaths = \\\n /home/pi/new\nRestart=no\n"
    ran = fake_systemd(tmp_path, unit_of("client") + added, monkeypatch)
    unit = unit_for("client", Path("/etc/fedtide/../fedtide/x.toml"))
    assert try_out(unit, "doctor", "x.toml") == 0
    words = ran.read_text().splitlines()
    assert "User=fedtide" in words
    assert words[-7:] == [
        "BindReadOnlyPaths=/home/pi/new",
        *("/bin/sh", "-I", "-m", "fedtide", "doctor", "x.toml"),
    ]
    assert not [word for word in words if re.match(r"Restart|Exec|Type|Wants", word)]


def test_only_the_services_own_configuration_is_looked_at_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = Path("/etc/fedtide/x.toml"), Path("/etc/fedtide/y.toml")
    fake_systemd(tmp_path, unit_of("client"), monkeypatch)
    assert unit_for("client", own)
    assert unit_for("client", other) == ""
    fake_systemd(tmp_path, unit_of("client", user="root"), monkeypatch)
    assert unit_for("client", own) == ""  # it would ask itself for ever
    fake_systemd(tmp_path, "", monkeypatch)
    assert unit_for("client", own) == ""  # there is none
