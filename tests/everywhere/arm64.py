"""The trainers' contract on 64-bit Arm: `make test-arm64`, on any Linux machine.

A Debian userland for arm64 is unpacked into `build/arm64/` (debootstrap; nothing of it runs while
it is built), pip adds the wheels that a Raspberry Pi would get, and QEMU emulates a Cortex-A72, the
core of the Raspberry Pi 4, one process at a time (proot: neither root's chroot nor binfmt is
needed to run it). Emulation is some 150 times slower than the machine: small models only. It
shows right numbers, not times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.everywhere.requirements import ROOT, device_requirements

SUITE, PYTHON = "bookworm", "3.11"
"""A release of Debian and the Python in it: that of Raspberry Pi OS 12."""
FOLDER = ROOT / "build" / "arm64"
TESTS = ["tests/contract/test_trainers.py"]
TOOLS = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static", "proot": "proot"}
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""`/proc/cpuinfo` of a Raspberry Pi 4. onnxruntime reads it when it is imported, and fails on the
host's, which is another processor's."""


def main(arguments: list[str]) -> int:
    """Run the tests natively, which exports their bundles, then emulated."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        print(f"test-arm64: install {' '.join(missing)} (Debian's names)", file=sys.stderr)
        return 1
    userland = make_userland()
    tests = arguments or TESTS
    native = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False)
    if native.returncode:
        return native.returncode
    return run_emulated(userland, tests)


def run_emulated(userland: Path, tests: list[str]) -> int:
    """Exit status of the tests in the userland.

    QEMU 7.2 now and then ends programs whose threads run on several processors (3 of 6 runs;
    none of 8 on one), hence one. And proot reports success of whatever was ended by a signal, so
    pytest's own word is needed.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    status = userland / "tmp" / "status"
    status.unlink(missing_ok=True)
    code = (
        "import pathlib, pytest, sys; status = int(pytest.main(sys.argv[1:]));"
        "pathlib.Path('/tmp/status').write_text(str(status))"
    )
    subprocess.run(emulated(userland, "-c", code, *OPTIONS, *tests), check=False)
    if not status.is_file():
        print("test-arm64: the emulated Python did not come to its end", file=sys.stderr)
        return 1
    return int(status.read_text())


OPTIONS = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--durations=5"]


def emulated(userland: Path, *arguments: str) -> list[str]:
    """The command that runs the userland's Python; the repository is its working directory."""
    cpuinfo = FOLDER / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    environment = {
        "HOME": "/root",
        "PATH": "/usr/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": "/opt/packages",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "QEMU_CPU": "cortex-a72",
        # Exists and exports nothing: a bundle that is missing is an error, not a skipped test.
        "FEDTIDE_EXPORT_PYTHON": "/usr/bin/false",
    }
    binds = ["/dev", "/proc", "/sys", f"{cpuinfo}:/proc/cpuinfo", f"{ROOT}:/fedtide"]
    return [
        *("proot", "-q", "qemu-aarch64-static", "-r", str(userland), "-w", "/fedtide"),
        *(word for bind in binds for word in ("-b", bind)),
        *("/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items())),
        *("/usr/bin/python3", *arguments),
    ]


def make_userland() -> Path:
    """The userland's folder, made if it is not there or was made for other requirements."""
    userland, stamp = FOLDER / "root", FOLDER / "ready"
    wanted = "\n".join([SUITE, *device_requirements()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return userland
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    print(f"test-arm64: making {userland}", flush=True)
    _run(
        "debootstrap",
        "--foreign",
        "--arch=arm64",
        "--variant=minbase",
        "--include=python3",
        SUITE,
        str(userland),
    )
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
    platforms = [f"--platform=manylinux{version}_aarch64" for version in ("_2_28", "2014")]
    _run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--only-binary=:all:",
        *platforms,
        f"--python-version={PYTHON}",
        "--implementation=cp",
        f"--target={userland / 'opt/packages'}",
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
