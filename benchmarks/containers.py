"""A machine with a systemd of its own for a benchmark: Debian in a container. Root only.

The userland comes from debootstrap and is kept in `build/`; what a machine writes goes into an
overlay, and is gone with it. It sees this host's network.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SUITE = "trixie"
PACKAGES = "systemd,systemd-sysv,dbus,python3,ca-certificates"
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
FOLDER = Path(__file__).resolve().parent.parent / "build" / "debian"
BOOT_S = 90.0
_GROUPS = Path("/sys/fs/cgroup")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

_BOOT = """
for group in $GROUPS_OF_IT; do mkdir "$group"; echo $$ >"$group/cgroup.procs"; done
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
layers="lowerdir=$LOWER,upperdir=$UPPER/changes,workdir=$UPPER/work"
mount -t overlay -o "$layers" overlay "$UPPER/root"
exec systemd-nspawn --quiet --directory="$UPPER/root" --machine="$NAME" --register=no --keep-unit \\
  --console=pipe --resolv-conf=copy-host --boot
"""


def missing_tools() -> list[str]:
    """Debian's names of packages that are not installed here."""
    return sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})


def make_userland() -> Path:
    """A bare Debian, made if it is not there."""
    userland = FOLDER / SUITE
    if not (userland / "sbin/init").exists():
        shutil.rmtree(userland, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE]
        done = subprocess.run([*command, userland], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"debootstrap failed:\n{done.stdout[-2000:]}")
        if _CERTIFICATES.exists():  # those that this host trusts
            shutil.copy(_CERTIFICATES, userland / "etc/ssl/certs")
    return userland


class Container:
    """Boots when it is entered, and is gone when it is left."""

    def __init__(self, name: str) -> None:
        self._name = f"fedtide-{name}-{os.getpid()}"
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=FOLDER))
        self._groups = [_GROUPS / kind / self._name for kind in ("unified", "systemd")]
        self._leader = 0

    def __enter__(self) -> Self:
        for name in ("changes", "work", "root"):
            (self._folder / name).mkdir()
        groups = [str(group) for group in self._groups if group.parent.is_dir()]
        environment = {
            **os.environ,
            "LOWER": str(make_userland()),
            "UPPER": str(self._folder),
            "NAME": self._name,
            "GROUPS_OF_IT": " ".join(groups or [str(_GROUPS / self._name)]),
            "UNIFIED_CGROUP_HIERARCHY": "1",
        }
        with (self._folder / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(
                ["unshare", "--mount", "--propagation=private", "sh", "-ec", _BOOT],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + BOOT_S
        while not self._is_up():
            if time.monotonic() > deadline_s or self._nspawn.poll() is not None:
                told = (self._folder / "console").read_text(errors="replace")
                self.__exit__(None, None, None)
                raise RuntimeError(f"{self._name} does not boot:\n{told[-2000:]}")
            time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.kill(self._leader or self._nspawn.pid, signal.SIGRTMIN + 4)  # power off
            self._nspawn.wait(30)
        if self._nspawn.poll() is None:
            os.killpg(self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()
        for group in self._groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_up(self) -> bool:
        self._leader = next(_first_processes(self._nspawn.pid), 0)
        if not self._leader:
            return False
        done = self._run("systemctl is-system-running")
        return done.stdout.strip() in ("running", "degraded")

    def run(self, command: str) -> str:
        """What a command line of root's prints.

        Raises:
            RuntimeError: it failed.
        """
        done = self._run(command)
        if done.returncode:
            raise RuntimeError(f"{command}\nended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--pid"]
        variables = {
            "HOME": "/root",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "PIP_CERT": str(_CERTIFICATES),
        }
        words = [f"{name}={value}" for name, value in variables.items()]
        return subprocess.run(
            [*inside, "--root", "env", "-i", "--chdir=/root", *words, "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def give(self, source: Path, name: str) -> None:
        """A file or folder of this host's, as /root/NAME."""
        tar = ["tar", "-C", str(source.parent), "-c", source.name]
        packed = subprocess.run(tar, stdout=subprocess.PIPE, check=True)
        self._unpack(packed.stdout)
        if source.name != name:
            self.run(f"mv {source.name} {name}")

    def take(self, *names: str) -> bytes:
        """Files of /root, packed for `unpack`."""
        command = ["nsenter", f"--target={self._leader}", "--mount", "--root"]
        done = subprocess.run(
            [*command, "tar", "-C", "/root", "-c", *names], stdout=subprocess.PIPE, check=True
        )
        return done.stdout

    def _unpack(self, packed: bytes) -> None:
        command = ["nsenter", f"--target={self._leader}", "--mount", "--root"]
        subprocess.run(
            [*command, "tar", "-C", "/root", "--no-same-owner", "-x"], input=packed, check=True
        )

    def fetch(self, other: Container, *names: str) -> None:
        """Files of another machine's /root, as scp would bring them."""
        self._unpack(other.take(*names))


def _first_processes(process: int) -> Iterator[int]:
    """Descendants that are the first of their own machine."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        with suppress(OSError, IndexError):
            status = Path(f"/proc/{child}/status").read_text()
            if status.split("NSpid:")[1].split("\n")[0].split()[-1] == "1":
                yield child
                continue
        yield from _first_processes(child)
