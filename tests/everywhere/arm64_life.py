"""The life of a device on emulated 64-bit Arm, from the offline file to nothing left.

Installed, joined over mTLS, at work beside an x86-64 client, restarted after kill -9, updated,
spared a broken update, revoked, gone. The server is the true one, below a folder, on this machine's
loopback: Mosquitto, registrar and coordinator.
"""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from coordinator.packaging.own_wheel import pack_wheel
from demo.local import wait_for
from tests.deployment import ROUNDS_S, Deployment
from tests.everywhere.emulation import (
    FOLDER,
    PYTHON,
    Core,
    Emulated,
    Userland,
    make_userland,
)
from tests.everywhere.requirements import ROOT

NAME, OTHER = "pi", "desk"
"""The emulated device, and the one beside it."""


def live(core: Core) -> dict[str, Any]:
    """Seconds of each step, and sizes; an error if one of them is not as it should be."""
    folder = FOLDER / f"life-{core.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    device = Userland(_fresh_copy(folder), core, [f"{folder}:/mnt"])
    before = inventory(device.root)
    files = make_files(folder)
    figures: dict[str, Any] = {"file_mb": round(files["1"].stat().st_size / 1e6, 1)}
    timed = Stopwatch(core, figures)
    with ExitStack() as stack:
        server = stack.enter_context(Deployment(folder / "server", quorum=2, devices_min=2))
        with timed("install"):
            said = device.run("sh", f"/mnt/{files['1'].name}")
            assert "installed: fedtide" in said, said
        installed = folder_bytes(device.root / "opt")
        figures["installed_mb"] = round(installed / 1e6, 1)
        with timed("join"):
            code, data = (f"/mnt/server/{path.name}" for path in server.invite(NAME))
            device.run("fedtide", "device", "join", code, "--root", "/", "--data", data)
        client = stack.enter_context(running(device, folder / "client.log"))
        server.start_client(server.join(OTHER))
        with timed("first_round_of_both"):
            server.wait_for_rounds(1, NAME, OTHER)
        with timed("ten_rounds"):
            server.wait_for_rounds(10, NAME, OTHER)
        with timed("killed_and_at_work_again"):
            client.end(signal.SIGKILL)
            client = stack.enter_context(running(device, folder / "client.log"))
            server.wait_for_rounds(2, NAME, OTHER)
        with timed("update"):
            device.run("sh", f"/mnt/{files['2'].name}")
        assert "fedtide 9.2" in device.run("fedtide", "--version")
        client.end()
        client = stack.enter_context(running(device, folder / "client.log"))
        server.wait_for_rounds(2, NAME, OTHER)
        with timed("broken_update_refused"):
            said = device.run("sh", f"/mnt/{files['broken'].name}", fails_with=8)
            assert "does not run here" in said, said
        assert "fedtide 9.2" in device.run("fedtide", "--version")
        server.wait_for_rounds(2, NAME, OTHER)
        with timed("back_to_the_version_before"):
            device.run("sh", f"/mnt/{files['1'].name}")
        with timed("revoked"):
            server.device("revoke", NAME)
        with timed("client_tells_it"):
            wait_for(lambda: _is_out(folder / "client.log"), "the client's word", ROUNDS_S)
        client.end()
        with timed("leave_and_uninstall"):
            said = device.run("/opt/fedtide/uninstall", "--purge")
    left = inventory(device.root)
    assert left == before, f"left: {sorted(left.items() ^ before.items())[:20]}"
    figures["files_left"] = 0
    shutil.rmtree(folder)
    return figures


def _is_out(log: Path) -> bool:
    """The client says that it is no longer let in."""
    return "certificate revoked" in log.read_text()


class Stopwatch:
    """Seconds of steps, into the figures."""

    def __init__(self, core: Core, figures: dict[str, Any]) -> None:
        self._core = core
        self._figures = figures

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Of the body."""
        started_s = time.monotonic()
        yield
        seconds = round(time.monotonic() - started_s, 1)
        self._figures[f"{step}_s"] = seconds
        print(f"test-arm64: {self._core.name}: {step} {seconds} s", flush=True)


# ---- the device ----


def _fresh_copy(folder: Path) -> Path:
    root = folder / "root"
    subprocess.run(["cp", "-a", make_userland(), root], check=True)
    return root


@contextmanager
def running(device: Userland, log: Path) -> Iterator[Emulated]:
    """The client, as a service would run it."""
    client = Emulated(device, log, "fedtide", "client", "--config", "/etc/fedtide/client.toml")
    try:
        yield client
    finally:
        client.end(signal.SIGKILL)


def inventory(root: Path) -> dict[str, tuple[int, str]]:
    """Kind and rights of everything, and targets of links or sizes and times of files."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            content = str(path.readlink())
        else:
            content = f"{status.st_size} {status.st_mtime_ns}" if path.is_file() else ""
        found[path.relative_to(root).as_posix()] = (status.st_mode, content)
    return found


def folder_bytes(folder: Path) -> int:
    """Of all files; blocks of the disk come to it."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


# ---- versions ----


def make_files(folder: Path) -> dict[str, Path]:
    """The offline files of this version, of a later one, and of one that cannot start."""
    dist = folder / "dist"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", dist, ROOT], check=True)
    (own,) = dist.glob("*.whl")
    wheels = {
        "1": own,
        "2": changed(own, "9.2", {}),
        "broken": changed(own, "9.3", {"edge_client/runner.py": "import not_there\n"}),
    }
    files = {}
    for name, wheel in wheels.items():
        files[name] = folder / f"client-{name}.run"
        command = ["server", "package", "--wheel", str(wheel), "--out", str(files[name])]
        subprocess.run(
            [sys.executable, "-m", "fedtide", *command, "--python", PYTHON],
            cwd=ROOT, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    return files


def changed(wheel: Path, version: str, texts: Mapping[str, str]) -> Path:
    """The wheel, as another version, with other texts of some modules."""
    with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    (metadata,) = (name for name in old if name.endswith(".dist-info/METADATA"))
    before = metadata.split("-")[1].removesuffix(".dist")
    members = {}
    for name, raw in old.items():
        if name.endswith("/RECORD"):
            continue
        content = texts[name].encode() if name in texts else raw
        if name in (metadata, "fedtide/__init__.py"):
            content = content.replace(before.encode(), version.encode(), 1)
        members[name.replace(f"fedtide-{before}.dist-info", f"fedtide-{version}.dist-info")] = (
            content
        )
    path = wheel.with_name(f"fedtide-{version}-py3-none-any.whl")
    path.write_bytes(pack_wheel(f"fedtide-{version}", members))
    return path
