"""A machine with a systemd of its own: Debian in a container, in which fedtide is installed.

The userland comes from debootstrap and is kept in `build/systemd/`; every machine writes into an
overlay, thrown away with it. `systemd-nspawn` boots it: systemd is its first process and knows no
difference, but for the kernel and its control groups, which are the host's. Root only.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.everywhere.requirements import ROOT, packages, requirements

SUITE = os.environ.get("FEDTIDE_DEBIAN", "bookworm")
PYTHON = {"bookworm": "3.11", "trixie": "3.13"}[SUITE]
PACKAGES = ("systemd", "systemd-sysv", "dbus", "mosquitto", "python3-venv", "procps", "iproute2")
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
FOLDER = ROOT / "build" / "systemd" / SUITE
ENVIRONMENT = Path("/opt/fedtide")
"""Of fedtide, in the machine."""
DIES_WITH_ITS_PARENT = ("setpriv", "--pdeathsig=KILL")
BOOT_S, ANSWER_S = 90.0, 120.0


def missing() -> str:
    """Why there can be no such machine here; empty if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "root on Linux is needed"
    packages = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    return f"install {' '.join(packages)} (Debian's names)" if packages else ""


class Machine:
    """Boots when it is entered, is switched off and gone when it is left."""

    def __init__(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._lock = (FOLDER / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # until this process ends, however it does
        self._userland = make_userland()
        self._folder = Path(tempfile.mkdtemp(prefix="machine-", dir=FOLDER))
        self._groups = _control_groups()
        self._leader = 0

    def __enter__(self) -> Machine:
        for name in ("changes", "work", "root"):
            (self._folder / name).mkdir()
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(self._folder / "notify"))
        root = self._folder / "root"
        layers = f"upperdir={self._folder}/changes,workdir={self._folder}/work"
        begin = (
            # nspawn lets a container write in the group of one hierarchy, and memory is another's.
            "for name in memory pids cpu cpuacct blkio devices; do mount -o remount,bind,rw "
            "/sys/fs/cgroup/$name 2> /dev/null || true; done; "
            # Debian 13's systemd wants to be told before it takes the groups of a host of old.
            f"exec {' '.join(DIES_WITH_ITS_PARENT)} /sbin/init SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
        )
        script = (
            'for group in $GROUPS_OF_IT; do mkdir "$group"; echo $$ > "$group/cgroup.procs"; done; '
            # It removes what it finds there only from a memory file system.
            "mkdir -p /run/systemd/nspawn; mount -t tmpfs tmpfs /run/systemd/nspawn; "
            f"mount -t overlay -o lowerdir={self._userland},{layers} overlay {root}; "
            # With 133 it says that the machine wants to boot again.
            "status=133; while [ $status = 133 ]; do status=0; "
            f"{' '.join(DIES_WITH_ITS_PARENT)} systemd-nspawn --quiet --directory={root} "
            "--machine=fedtide-test --private-network --register=no --keep-unit --notify-ready=yes "
            f"--console=pipe sh -c '{begin}' || status=$?; done"
        )
        self._console = (self._folder / "console").open("wb")
        self._nspawn = subprocess.Popen(
            [
                *DIES_WITH_ITS_PARENT,
                "unshare",
                "--mount",
                "--propagation=private",
                "sh",
                "-ec",
                script,
            ],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(self._folder / "notify"),
                "GROUPS_OF_IT": " ".join(map(str, self._groups)),
            },
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._await_boot()
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.kill(self._leader or self._nspawn.pid, signal.SIGRTMIN + 4)  # power off
            self._nspawn.wait(30)
        if self._nspawn.poll() is None:
            os.killpg(self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()
        self._ear.close()
        self._console.close()
        for group in self._groups:
            _remove_groups(group)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def _await_boot(self) -> None:
        """nspawn tells the first process's id, then that systemd has started everything."""
        deadline_s = time.monotonic() + BOOT_S
        while True:
            self._ear.settimeout(max(0.01, deadline_s - time.monotonic()))
            try:
                said = self._ear.recv(4096).decode()
            except TimeoutError:
                console = (self._folder / "console").read_text(errors="replace")
                raise AssertionError(f"the machine does not boot:\n{console[-4000:]}") from None
            if found := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", said, re.MULTILINE):
                self._leader = int(found[1])
            if "READY=1" in said.split("\n"):
                return

    def reboot(self) -> None:
        """All processes end, and systemd starts again with what is on the disk."""
        self.run("systemctl", "reboot", check=False)
        self._await_boot()

    def run(
        self, *command: str, check: bool = True, text: str = "", seconds_max: float = ANSWER_S
    ) -> str:
        """Run it as root in the machine; what it printed.

        Raises:
            AssertionError: it failed, unless `check` is False.
        """
        inside = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd=/")
        settings = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root")
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", *inside, "env", "-i", *settings, *command],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds_max,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
        return done.stdout.strip()

    def python(self, code: str, *words: str, user: str = "root") -> str:
        """What a programme of fedtide's environment prints."""
        command = [str(ENVIRONMENT / "bin/python"), "-I", "-c", code, *words]
        return self.run("setpriv", f"--reuid={user}", "--clear-groups", *command)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit)

    def log(self, unit: str) -> str:
        """What the unit logged since the machine booted."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def write(self, path: str | Path, text: str) -> None:
        """A file of the machine's, and the folders to it."""
        self.run("sh", "-ec", f'mkdir -p "$(dirname "{path}")"; cat > "{path}"', text=text)

    def copy(self, folder: Path, path: str) -> None:
        """A folder of the host's, as `path` in the machine."""
        self.run("mkdir", "-p", path)
        packed = subprocess.run(
            ["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE, check=True
        )
        command = ["nsenter", f"--target={self._leader}", "--mount", "--root", "--wd=/"]
        command += ["tar", "-C", path, "--no-same-owner", "-x"]
        subprocess.run(command, input=packed.stdout, check=True)

    def host_pid(self, unit: str) -> int:
        """The unit's main process, as the host counts it."""
        inside = self.show(unit, "MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.MULTILINE)
                if found and found[2] == inside and self._is_here(int(found[1])):
                    return int(found[1])
        raise AssertionError(f"{unit} has no process {inside}")

    def _is_here(self, pid: int) -> bool:
        return Path(f"/proc/{pid}/ns/pid").samefile(f"/proc/{self._leader}/ns/pid")

    def until(self, holds: Callable[[], object], what: str, seconds: float = ANSWER_S) -> None:
        """Wait for it; it is looked at five times a second."""
        deadline_s = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline_s:
                failed = self.run("systemctl", "list-units", "fedtide-*", "--all", check=False)
                log = self.run("journalctl", "--no-pager", "-n", "60", "-o", "short-monotonic")
                raise AssertionError(f"not within {seconds:g} s: {what}\n{failed}\n{log}")
            time.sleep(0.2)


def make_userland() -> Path:
    """Debian, with an environment that has what fedtide needs, and fedtide as it is now."""
    root, stamp = FOLDER / "root", FOLDER / "ready"
    needed = requirements("client", "coordinator")
    wanted = "\n".join([SUITE, *PACKAGES, *needed])
    pip = ["chroot", str(root), f"{ENVIRONMENT}/bin/pip", "install", "--quiet", "--no-index"]
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"test-systemd: making {root}", flush=True)
        stamp.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        included = f"--include={','.join(PACKAGES)}"
        _run("debootstrap", "--variant=minbase", included, SUITE, str(root))
        _run("chroot", str(root), "systemctl", "disable", "mosquitto")  # ours is another
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        _run("chroot", str(root), "python3", "-m", "venv", str(ENVIRONMENT))
        wheels = root / "wheels"
        chosen = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
        _pip("download", "--quiet", *chosen, f"--dest={wheels}", *needed)
        _run(*pip, "--find-links=/wheels", *needed)
        shutil.rmtree(wheels)
        stamp.write_text(wanted)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        _wheel(Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        _run(*pip, "--no-deps", "--force-reinstall", f"/{Path(folder).name}/{wheel.name}")
    return root


def _wheel(folder: Path) -> None:
    """Of a copy: setuptools puts into a wheel what older ones left in `build/`."""
    with tempfile.TemporaryDirectory() as copy:
        for name in packages():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, Path(copy, name), ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / name, copy)
        _pip("wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", copy)


def _control_groups() -> list[Path]:
    """One group of our own in each hierarchy, below that of this process; made by whoever enters.

    `cpuset` is left out: a group of it holds no process before it is given processors.
    """
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.strip("/")
    groups = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            groups.append(Path(where, own.get("", "")))
        elif kind == "cgroup":
            mine = {
                name for name in own if name and set(name.split(",")) <= set(options.split(","))
            }
            groups += [Path(where, own[name]) for name in mine - {"cpuset"}]
    for group in groups:
        for stale in group.glob("fedtide-test-*"):  # of a test that was killed
            _remove_groups(stale)
    return [group / f"fedtide-test-{os.getpid()}" for group in groups]


def _remove_groups(top: Path) -> None:
    """A group and those below it, unless a process is in one."""
    for parent, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):
            Path(parent).rmdir()


def _pip(*words: str) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", *words)


def _run(*command: str) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, (
        f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}"
    )
