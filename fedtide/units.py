"""systemd's units of the four services: rendered, installed, started, removed.

The texts are in `fedtide/systemd/`, with `@name@` where this machine's paths and users go. What
the settings are for is in docs/adr/0021-services.md.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Literal

from fedtide import __version__
from fedtide.errors import ConfigError, FedtideError
from fedtide.files import write_atomically

Role = Literal["broker", "coordinator", "registrar", "client"]

FOLDER = Path("/etc/systemd/system")
MOSQUITTO = Path("/usr/sbin/mosquitto")
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
"""What a unit's service sees an empty folder in place of, but for what is named."""
_NEWER = {"RestartSteps": 254, "RestartMaxDelaySec": 254}
"""Settings, and the systemd that brought them; older ones complain at every look at the unit."""
_OF_THE_SERVICE_ONLY = re.compile(
    r"Type|Exec\w+|Restart\w*|WatchdogSec|SyslogIdentifier|RuntimeDirectory"
)
"""Settings that say how a service lives, not what it may do."""
_ANSWER_S = 60.0


def unit_name(role: Role) -> str:
    """File name of the service's unit."""
    return f"fedtide-{role}.service"


def render(
    role: Role,
    *,
    user: str,
    config: Path,
    writable: Sequence[Path],
    readable: Sequence[Path] = (),
    python: Path | None = None,
    memory_max: str = "60%",
) -> str:
    """The unit's text.

    `config` is the service's own file (mosquitto.conf, coordinator.toml, ...), `writable` the
    folders that it may write in, which exist when it starts; everything else is read-only.
    `readable` names files (shown with the folder that they are in) and folders that it needs
    although they lie in somebody's home or a folder for temporary files, of which it sees nothing
    else; those elsewhere need no naming.
    `python` is the interpreter of the environment that fedtide is installed in, by default this
    one. `memory_max` is the client's, as systemd writes it.

    Raises:
        ConfigError: a path cannot stand in a unit.
    """
    named = {
        "version": __version__,
        "user": user,
        "config": _exec_word(config),
        "python": _exec_word(python or Path(sys.executable)),
        "mosquitto": _exec_word(MOSQUITTO),
        "memory_max": memory_max,
        "writable": " ".join(_word(path) for path in writable),
        "readable": "\n".join(
            f"BindReadOnlyPaths={_word(Path(f'-{path}'), bind=True)}"
            for path in dict.fromkeys(map(_shown, readable))
            if any(path.is_relative_to(hidden) for hidden in _HIDDEN)
        ),
    }
    named["python_service"] = _filled(_template("python_service.conf"), named)
    named["hardening"] = _filled(_template("hardening.conf"), named)
    text = _filled(_template(unit_name(role)), named)
    version = systemd_version()
    unknown = [name for name, since in _NEWER.items() if version < since]
    return (
        re.sub(rf"^({'|'.join(unknown)})=.*\n", "", text, flags=re.MULTILINE) if unknown else text
    )


def _shown(path: Path) -> Path:
    """A file's folder, so that a file which takes its place is seen, too; but nobody's whole home,
    and no folder that is everybody's."""
    of_many = path.parent in _HIDDEN or path.parent.parent == Path("/home")
    return path if path.is_dir() or of_many else path.parent


def _template(name: str) -> str:
    return (files("fedtide") / "systemd" / name).read_text(encoding="utf-8")


def _filled(template: str, named: dict[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda match: named[match[1]], template)


def _word(path: Path, *, bind: bool = False) -> str:
    """`path` as one word of a setting: quoted, its `%` no specifier."""
    text = str(path)
    if not text.isprintable() or (bind and ":" in text):
        raise ConfigError(
            f"the path {text!r} cannot stand in a systemd unit",
            hint="use a path without colons and characters that do not print",
        )
    if re.fullmatch(r"[\w/.+@-]+", text, re.ASCII):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text).replace("%", "%%") + '"'


def _exec_word(path: Path) -> str:
    """As `_word`, in a command line, where `$` names a variable."""
    return _word(path).replace("$", "$$")


def check_reachable(user: str, python: Path | None = None) -> None:
    """The service's `user` can run the fedtide that is installed for `python`. Needs root.

    Raises:
        ConfigError: it cannot; with a way to install it where it can.
    """
    python = python or Path(sys.executable)
    hint = (
        "install fedtide where every user can run it, then repeat this command with that one: "
        "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install ..., as docs/deploy.md says"
    )
    for path in (python, python.resolve()):  # an environment, and the Python that it was made with
        if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ConfigError(f"a service cannot run {str(path)!r}: it sees no homes", hint=hint)
    command = [str(python), "-I", "-m", "fedtide", "--version"]
    try:
        account = pwd.getpwnam(user)
    except KeyError as exc:
        raise ConfigError(f"there is no user {user!r} on this machine") from exc
    try:
        done = subprocess.run(
            command,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
        said = done.stderr.strip().rsplit("\n", 1)[-1]
        failed = (said or f"exit code {done.returncode}") if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as exc:
        failed = str(exc)
    if failed:
        raise ConfigError(f"the user {user!r} cannot run {str(python)!r}: {failed}", hint=hint)


def systemd_runs() -> bool:
    """Whether this machine was booted with systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def systemd_version() -> int:
    """Of the systemd that is installed here; without one, what is as good as the newest."""
    try:
        done = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return sys.maxsize
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else sys.maxsize


def install(role: Role, text: str, folder: Path = FOLDER) -> Path:
    """Write the unit and make systemd read it; the file. It is neither enabled nor started."""
    path = folder / unit_name(role)
    write_atomically(path, text.encode())
    path.chmod(0o644)
    if folder == FOLDER and systemd_runs():
        _systemctl("daemon-reload")
    return path


def try_out(text: str, *words: str) -> int:
    """Run `fedtide WORDS` as the service of the unit `text` would run: as its user, with its
    limits, in its sandbox. Its exit code; what it prints is printed."""
    settings = _service_settings(text)
    started = next(value.split()[0] for name, value in settings if name == "ExecStart" and value)
    command = ["systemd-run", "--quiet", "--collect", "--wait", "--pipe"]
    for name, value in settings:
        if not _OF_THE_SERVICE_ONLY.fullmatch(name):
            command += ["--property", f"{name}={value}".replace("%%", "%")]
    command += [started, "-I", "-m", "fedtide", *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


def unit_for(role: Role, config: Path) -> str:
    """The installed unit, with the settings that were added to it, if it is one of this `config`
    and root asks, who alone can try it out; else nothing."""
    if os.getuid() != 0 or not systemd_runs():
        return ""
    done = subprocess.run(
        ["systemctl", "cat", unit_name(role)], capture_output=True, text=True, check=False
    )
    settings = _service_settings(done.stdout)
    users = [value for name, value in settings if name == "User"]
    if not users or users[-1] in ("", "0", "root"):  # we are that one
        return ""
    with suppress(ConfigError):
        named = f" --config {_exec_word(Path(os.path.abspath(config)))}"  # noqa: PTH100 - no links
        if any(name == "ExecStart" and value.endswith(named) for name, value in settings):
            return done.stdout
    return ""


def _service_settings(text: str) -> list[tuple[str, str]]:
    """Name and value, in their order, of all sections of that kind: where settings were added there
    is more than one."""
    found, section = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section == "[Service]" and (setting := re.match(r"\s*([A-Z]\w*)\s*=\s*(.*)", line)):
            found.append((setting[1], setting[2].rstrip()))
    return found


def start(*roles: Role) -> None:
    """Now and at each boot; returns when they have said that they are ready.

    Raises:
        FedtideError: one does not come up; the message ends with what this start logged last.
    """
    _systemctl("enable", *map(unit_name, roles))
    for role in roles:
        began_s = time.time()
        try:
            _systemctl("restart", unit_name(role), seconds_max=None)
        except FedtideError as exc:
            raise FedtideError(
                f"{unit_name(role)} does not start:\n{_log_of(role, began_s)}",
                hint=f"journalctl -u {unit_name(role)} has the whole log",
            ) from exc


def is_running(role: Role) -> bool:
    """Whether the service has been started, and is not down for good."""
    return _systemd_says("is-active", unit_name(role))


def debians_broker_is_on() -> bool:
    """Whether the service that Debian's package of Mosquitto brings runs, or will at the next
    boot."""
    return any(_systemd_says(what, "mosquitto.service") for what in ("is-active", "is-enabled"))


def _systemd_says(*words: str) -> bool:
    if not systemd_runs():
        return False
    command = ["systemctl", "--quiet", *words]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def remove(role: Role, folder: Path = FOLDER) -> None:
    """Stop the service and take its unit away, with the settings that were added to it."""
    path = folder / unit_name(role)
    ours = folder == FOLDER and systemd_runs()
    if ours and path.exists():
        _systemctl("disable", "--now", path.name, seconds_max=None)
    path.unlink(missing_ok=True)
    for setting in path.with_name(f"{path.name}.d").glob("*"):
        setting.unlink()
    if (added := path.with_name(f"{path.name}.d")).is_dir():
        added.rmdir()
    if ours:
        _systemctl("daemon-reload")


def _log_of(role: Role, since_s: float, lines: int = 10) -> str:
    """The last lines that the service logged since then: those of earlier failures mislead."""
    command = ["journalctl", "--quiet", "--no-pager", "-o", "cat", "-u", unit_name(role)]
    command += ["--since", f"@{since_s:.6f}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "\n".join(done.stdout.strip().splitlines()[-lines:])


def _systemctl(*words: str, seconds_max: float | None = _ANSWER_S) -> None:
    """Raises FedtideError: systemd refuses, or does not answer."""
    command = ["systemctl", *words]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=seconds_max, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        said = getattr(exc, "stderr", None) or str(exc)
        raise FedtideError(f"{' '.join(command)} failed: {str(said).strip()}") from exc
