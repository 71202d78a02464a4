"""The ceiling for a process's memory, tried in processes of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedtide.memory_limit import available_bytes, limit_files
from tests.bundles import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")


def run(code: str) -> str:
    command = [sys.executable, "-c", f"from fedtide.memory_limit import limit_memory\n{code}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_more_than_the_limit_is_an_error_and_less_is_not() -> None:
    code = "limit_memory(200 << 20)\nbytearray(100 << 20)\nprint('fits')\n"
    assert run(code) == "fits"
    code += "try:\n    bytearray(300 << 20)\nexcept MemoryError:\n    print('refused')\n"
    assert run(code).split() == ["fits", "refused"]


def test_a_lower_limit_stays() -> None:
    assert run("limit_memory(300 << 20)\nprint(limit_memory(400 << 20))") == str(300 << 20)


def test_the_default_leaves_something_to_the_system() -> None:
    assert int(run("print(limit_memory())")) < available_bytes()


def test_blocks_that_are_freed_go_back_to_the_system() -> None:
    code = """
import ctypes
from fedtide.memory_limit import return_large_blocks
return_large_blocks()
if not hasattr(ctypes.CDLL(None), "mallopt"):
    print(0)
    raise SystemExit
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
bytearray(8 << 20)
before, kept = resident(), []
for _ in range(8):
    block = bytearray(4 << 20)
    kept.append(bytearray(100_000))
    kept.append(block)
del kept[1::2], block
print(resident() - before)
"""
    assert int(run(code)) < 8 << 20


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/system.slice/a.service", ["system.slice/a.service/memory.max", "memory.max"]),
        ("4:cpu,memory:/a\n0::/", ["memory/a/memory.limit_in_bytes", "memory.max"]),
        ("3:pids:/a\n1:name=systemd:/a:b", []),
    ],
)
def test_the_limit_of_a_service_is_known(groups: str, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    found = [str(path.relative_to(tmp_path / "sys/fs/cgroup")) for path in limit_files(tmp_path)]
    assert [path for path in found if path in files] == files
    assert bool(found) == bool(files)
