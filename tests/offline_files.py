"""Installers' files of a client that is only a name and a version, and a systemd to match."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from coordinator.packaging.own_wheel import pack_wheel
from coordinator.packaging.run_file import make_run_file
from coordinator.packaging.wheels import Wheel

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE = os.uname().machine
UNIT = """\
[Service]
ExecStart=/opt/fedtide/current/bin/python -I -m fedtide client --config /etc/fedtide/client.toml
"""


def make_wheel(
    name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()
) -> Wheel:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        "Provides-Extra: client",
        "Provides-Extra: images",
        *(f"Requires-Dist: {requirement}" for requirement in requires),
    ]
    members = {path: text.encode() for path, text in files.items()}
    info = f"{name}-{version}.dist-info"
    members[f"{info}/METADATA"] = "\n".join([*lines, ""]).encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = pack_wheel(f"{name}-{version}", members)
    return Wheel(f"{name}-{version}-py3-none-any.whl", content)


def make_client(
    version: str, check: str = "", requires: tuple[str, ...] = (), main: str = ""
) -> Wheel:
    """A wheel with the true installer; `check` is what its self-check does, `main` the command."""
    installer = {
        f"device_installer/{path.name}": path.read_text()
        for path in sorted((REPOSITORY / "device_installer").glob("*.py"))
    }
    files = {
        **installer,
        "fedtide/__init__.py": "",
        "fedtide/__main__.py": main or f"print('fedtide {version}')\n",
        "edge_client/__init__.py": "",
        "edge_client/self_check.py": f"import sys, fedtide\n{check}\n",
    }
    return make_wheel("fedtide", version, files, requires)


def make_file(folder: Path, version: str, check: str = "", *more: Wheel) -> Path:
    """The installer's file of such a client, for this machine."""
    content, _ = make_run_file(version, MACHINE, {PYTHON: [make_client(version, check), *more]})
    path = folder / f"fedtide-client-{version}.run"
    path.write_bytes(content)
    return path


def make_python(folder: Path) -> Path:
    """A folder for PATH with a `python3` that is ours, and no environment's."""
    folder.mkdir()
    base = getattr(sys, "_base_executable", sys.executable)
    command = folder / "python3"
    command.write_text(f'#!/bin/sh\nexec "{base}" "$@"\n')
    command.chmod(0o755)
    return folder


def make_systemd(folder: Path, root: Path) -> Path:
    """A folder for PATH with a systemd that runs one service, as far as the installer can tell.

    `start` of a version whose name contains what ROOT/fails says fails; one that contains what
    ROOT/migrates says writes its number into the state, and a lower one then refuses to start. What
    was asked is in ROOT/calls, the service's state in ROOT/active, what it runs in ROOT/runs.
    """
    folder.mkdir()
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/systemd/system/fedtide-client.service").write_text(UNIT)
    (root / "run/systemd/system").mkdir(parents=True)
    state = root / "var/lib/fedtide/client/state"
    state.mkdir(parents=True)
    (state / "session.0").write_text("1")
    for name in ("fails", "migrates", "calls", "runs"):
        (root / name).write_text("")
    (root / "active").write_text("active\n")
    systemctl = folder / "systemctl"
    systemctl.write_text(_SYSTEMCTL.replace("@ROOT@", str(root)))
    for name, text in {
        "systemd-run": _RUN,
        "journalctl": "#!/bin/sh\necho 'it said why'\n",
    }.items():
        (folder / name).write_text(text.replace("@ROOT@", str(root)))
    for command in folder.iterdir():
        command.chmod(0o755)
    return folder


_RUN = """\
#!/bin/sh
echo "systemd-run $*" >>@ROOT@/calls
"""
_SYSTEMCTL = """\
#!/bin/sh
cd @ROOT@
echo "$*" >>calls
case $1 in
  is-active) cat active ;;
  stop) case $2 in *.timer) ;; *) echo inactive >active; : >runs ;; esac ;;
  start)
    version=$(sed -n 's|^ExecStart=/opt/fedtide/versions/\\([^/]*\\)/.*|\\1|p' \\
      run/systemd/system/fedtide-client.service.d/trial.conf 2>/dev/null)
    [ -n "$version" ] || version=$(basename "$(readlink opt/fedtide/current)")
    state=var/lib/fedtide/client/state/session.0
    fails=$(cat fails) migrates=$(cat migrates) number=${version%%.*} failed=
    if [ "$number" -lt "$(cat $state)" ]; then failed=1; fi
    if [ -n "$migrates" ]; then case $version in *"$migrates"*) echo "$number" >$state ;; esac; fi
    if [ -n "$fails" ]; then case $version in *"$fails"*) failed=1 ;; esac; fi
    if [ -n "$failed" ]; then
      echo failed >active; : >runs; echo "Job for $2 failed." >&2; exit 1
    fi
    echo active >active; echo "$version" >runs ;;
esac
"""
