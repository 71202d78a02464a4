"""A Debian userland for arm64, run one process at a time by QEMU as a Raspberry Pi's core.

It is unpacked into `build/arm64/` (debootstrap; nothing of it runs while it is built). proot shows
it to its processes: neither root's chroot nor binfmt is needed to run it. Emulation is some 150
times slower than the machine: small models only. It shows right numbers, not times.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.everywhere.requirements import ROOT, device_requirements

SUITE, PYTHON = "bookworm", "3.11"
"""A release of Debian and the Python in it: that of Raspberry Pi OS 12."""
FOLDER = ROOT / "build" / "arm64"
PACKAGES = FOLDER / "packages"
"""What pip adds for tests: no part of the userland."""
TOOLS = {
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "proot": "proot",
    "taskset": "util-linux",
}


class Core(NamedTuple):
    """A processor's core, as QEMU and Linux name it."""

    name: str
    board: str
    cpuinfo: str


def _cpuinfo(features: str, variant: str, part: str, revision: int) -> str:
    return (
        f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {variant}\nCPU part\t: {part}\n"
        f"CPU revision\t: {revision}\n\n"
    )


CORES = (
    Core(
        "cortex-a72",
        "Raspberry Pi 4",
        _cpuinfo("fp asimd evtstrm crc32 cpuid", "0x0", "0xd08", 3),
    ),
    Core(
        "cortex-a76",
        "Raspberry Pi 5",
        _cpuinfo(
            "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
            "dcpop asimddp",
            "0x4",
            "0xd0b",
            1,
        ),
    ),
)
"""`/proc/cpuinfo` as that board shows it. onnxruntime reads it when it is imported, and fails on
the host's, which is another processor's."""


class Userland:
    """A folder with a system for arm64, seen by a core."""

    def __init__(self, root: Path, core: Core, binds: Sequence[str] = ()) -> None:
        self.root = root
        self._core = core
        cpuinfo = FOLDER / f"cpuinfo-{core.name}"
        cpuinfo.write_text(core.cpuinfo)
        self._binds = ["/dev", "/proc", "/sys", f"{cpuinfo}:/proc/cpuinfo", *binds]

    def command(
        self, *words: str, folder: str = "/", environment: Mapping[str, str] | None = None
    ) -> list[str]:
        """What runs `words` in it.

        QEMU 7.2 now and then ends programs whose threads run on several processors (3 of 6 runs;
        none of 8 on one), hence one.
        """
        variables = {
            "HOME": "/root",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "QEMU_CPU": self._core.name,
            **(environment or {}),
        }
        return [
            *("taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))),
            *("proot", "-q", "qemu-aarch64-static", "-r", str(self.root), "-w", folder),
            *(word for bind in self._binds for word in ("-b", bind)),
            *("/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *words,
        ]

    def run(self, *words: str, fails_with: int = 0, seconds_max: float = 600) -> str:
        """What `words` print, both ways; an error if they end otherwise than expected."""
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds_max,
            check=False,
        )
        if done.returncode != fails_with:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout


class Emulated:
    """A program that runs in a userland until it is stopped; its output goes to a log."""

    def __init__(self, userland: Userland, log: Path, *words: str) -> None:
        with log.open("ab") as file:
            self._proot = subprocess.Popen(
                userland.command(*words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._proot.poll() is None

    def end(self, number: signal.Signals = signal.SIGTERM, seconds_max: float = 60) -> None:
        """Send the signal to the emulated programs; proot ends with the last of them."""
        for process in _descendants(self._proot.pid):
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue
        try:
            self._proot.wait(seconds_max)
        except subprocess.TimeoutExpired:
            os.killpg(self._proot.pid, signal.SIGKILL)
            self._proot.wait()


def _descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    try:
        found = [int(child) for child in children.read_text().split()]
    except OSError:
        return []
    return [*(deep for child in found for deep in _descendants(child)), *found]


def missing_tools() -> list[str]:
    """Debian's names of packages that are not installed here."""
    return sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})


def make_userland() -> Path:
    """The fresh userland's folder, made if it is not there; tests' packages are in `PACKAGES`."""
    userland, stamp = FOLDER / "root", FOLDER / "ready"
    wanted = "\n".join(["3", SUITE, *device_requirements()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return userland
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    print(f"test-arm64: making {userland}", flush=True)
    first_half = ("--foreign", "--arch=arm64", "--variant=minbase", "--include=python3")
    _run("debootstrap", *first_half, SUITE, str(userland))
    # The second half of debootstrap would run the packages' scripts under emulation, for minutes;
    # Python needs no more than the files.
    for package in sorted((userland / "var/cache/apt/archives").glob("*.deb")):
        content = FOLDER / "package.tar"
        with content.open("wb") as file:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=file, check=True)
        _run("tar", "-xf", str(content), "-C", str(userland), "--keep-directory-symlink")
    proc = userland / "proc"
    if proc.is_symlink():  # debootstrap in a container makes it a link to the host's
        proc.unlink()
        proc.mkdir()
    shutil.rmtree(userland / "var/cache/apt/archives")
    for folder in ("opt", "usr/local/bin"):  # of the scripts that did not run
        (userland / folder).mkdir(parents=True, exist_ok=True)
    standard_library = ("-m", "compileall", "-q", f"/usr/lib/python{PYTHON}")
    Userland(userland, CORES[0]).run("/usr/bin/python3", *standard_library)
    platforms = [f"--platform=manylinux{version}_aarch64" for version in ("_2_28", "2014")]
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *platforms),
        *(f"--python-version={PYTHON}", "--implementation=cp", f"--target={PACKAGES}"),
        *device_requirements(),
    )
    stamp.write_text(wanted)
    return userland


def _run(*command: str) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"test-arm64: {' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
