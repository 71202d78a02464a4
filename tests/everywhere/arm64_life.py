"""The life of a device on emulated 64-bit Arm, from the offline file to nothing left.

Installed, joined over mTLS, at work beside an x86-64 client, restarted after kill -9, updated,
spared a broken update, revoked, gone. The server is the true one, below a folder, on this machine's
loopback: Mosquitto, registrar and coordinator.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.packaging.own_wheel import pack_wheel
from demo.brokers import free_port, mosquitto_path
from demo.local import wait_for
from demo.processes import Child
from fedtide.launch import module_command
from tests import bundles
from tests.everywhere.emulation import (
    FOLDER,
    PYTHON,
    Core,
    Emulated,
    Userland,
    make_userland,
)
from tests.everywhere.requirements import ROOT

MODEL = "tiny_mlp"
NAME, OTHER = "pi", "desk"
"""The emulated device, and the one beside it."""
WAIT_S = 300.0


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
        server = stack.enter_context(Server(folder / "server"))
        with timed("install"):
            said = device.run("sh", f"/mnt/{files['1'].name}")
            assert "installed: fedtide" in said, said
        installed = folder_bytes(device.root / "opt")
        figures["installed_mb"] = round(installed / 1e6, 1)
        with timed("join"):
            said = device.run("fedtide", "device", "join", *server.invite(folder, NAME))
        client = stack.enter_context(running(device, folder / "client.log"))
        server.add_neighbour(folder)
        with timed("first_round_of_both"):
            server.wait_for_rounds(1)
        with timed("ten_rounds"):
            server.wait_for_rounds(10)
        with timed("killed_and_at_work_again"):
            client.end(signal.SIGKILL)
            client = stack.enter_context(running(device, folder / "client.log"))
            server.wait_for_rounds(2)
        with timed("update"):
            device.run("sh", f"/mnt/{files['2'].name}")
        assert "fedtide 9.2" in device.run("fedtide", "--version")
        client.end()
        client = stack.enter_context(running(device, folder / "client.log"))
        server.wait_for_rounds(2)
        with timed("broken_update_refused"):
            said = device.run("sh", f"/mnt/{files['broken'].name}", fails_with=8)
            assert "does not run here" in said, said
        assert "fedtide 9.2" in device.run("fedtide", "--version")
        server.wait_for_rounds(2)
        with timed("back_to_the_version_before"):
            device.run("sh", f"/mnt/{files['1'].name}")
        with timed("revoked"):
            server.revoke(NAME)
        with timed("client_tells_it"):
            wait_for(lambda: _is_out(folder / "client.log"), "the client's word", WAIT_S)
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
    return re.search(r"revoked|not authori[sz]ed|refuse", log.read_text()[-4000:]) is not None


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


# ---- the server ----


class Server:
    """What `fedtide server init` makes below a folder, running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._etc = folder / "etc/fedtide"
        self._children: list[Child] = []
        self._python = str(bundles.export_python() or sys.executable)

    def __enter__(self) -> Server:
        ports = ["--port", str(free_port()), "--local-port", str(free_port())]
        where = ["--bind", "127.0.0.1", "--root", str(self._folder), "--bundle"]
        self.fedtide(
            *("server", "init", "127.0.0.1", "--federation", "life"),
            *(*ports, *where, str(bundles.build(MODEL))),
        )
        config = self._etc / "coordinator.toml"
        text = config.read_text()
        for key, value in (("count", 1_000_000), ("quorum", 2), ("devices_min", 2)):
            text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        config.write_text(text)
        self._start(
            "broker", mosquitto_path() or "", "-c", str(self._etc / "broker/mosquitto.conf")
        )
        for role in ("registrar", "coordinator"):
            words = module_command(
                "fedtide", role, "--config", str(self._etc / f"{role}.toml"), python=self._python
            )
            self._start(role, *words)
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children):
            child.stop()

    def fedtide(self, *words: str) -> str:
        """What a command of the operator's prints."""
        done = subprocess.run(
            [self._python, "-m", "fedtide", *words],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def invite(self, folder: Path, name: str) -> list[str]:
        """Words with which the device `name` joins, in whose userland `folder` is /mnt."""
        self.device("add", name, "--out", str(folder / f"{name}.join"))
        write_data(folder / f"{name}.npz", seed=len(name))
        return [f"/mnt/{name}.join", "--root", "/", "--data", f"/mnt/{name}.npz"]

    def device(self, *words: str) -> str:
        """`fedtide device ...` on the server."""
        return self.fedtide("device", *words, "--config", str(self._etc / "registrar.toml"))

    def revoke(self, name: str) -> None:
        """Shut it out."""
        self.device("revoke", name)

    def add_neighbour(self, folder: Path) -> None:
        """A client of this machine's kind, joined and at work."""
        words = [word.replace("/mnt", str(folder)) for word in self.invite(folder, OTHER)]
        words[words.index("--root") : words.index("--root") + 2] = ["--folder", str(folder / OTHER)]
        python = os.environ.get("FEDTIDE_DEVICE_PYTHON", sys.executable)
        command = [python, "-m", "fedtide"]
        subprocess.run([*command, "device", "join", *words], cwd=ROOT, check=True)
        config = str(folder / OTHER / "client.toml")
        self._start(OTHER, *module_command("fedtide", "client", "--config", config, python=python))

    def wait_for_rounds(self, more: int) -> None:
        """So many more rounds in which both counted."""
        wanted = self._rounds() + more
        wait_for(lambda: self._rounds() >= wanted, f"{more} rounds of both", WAIT_S)

    def _rounds(self) -> int:
        path = self._folder / "var/lib/fedtide/coordinator/state/coordinator.db"
        if not path.exists():
            return 0
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            rows = database.execute(_ROUNDS_OF_BOTH, (NAME, OTHER)).fetchone()
        except sqlite3.OperationalError:
            return 0  # no tables yet
        finally:
            database.close()
        return int(rows[0])

    def _start(self, name: str, *words: str) -> None:
        child = Child(name, words, self._folder / f"{name}.log")
        child.start(PYTHONPATH=str(ROOT))
        self._children.append(child)


_ROUNDS_OF_BOTH = """
SELECT COUNT(*) FROM (
    SELECT joined FROM updates WHERE verdict = 'accepted' AND joined IS NOT NULL
    AND device_id IN (?, ?) GROUP BY joined HAVING COUNT(DISTINCT device_id) = 2)
"""


def write_data(path: Path, seed: int) -> None:
    """Three classes in 8 dimensions, as the model wants them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 60)
    x = (np.eye(3, 8)[y] * 4 + rng.normal(size=(60, 8))).astype(np.float32)
    np.savez(path, x=x, y=y)
