"""Processes that ours start: they find what we find, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demo.brokers import child_environment
from fedtide.launch import module_command, module_environment

SAYS_SO = "open('it_ran', 'w')"


@pytest.mark.parametrize("environment", [module_environment(), child_environment()])
def test_code_of_the_current_folder_is_not_run(tmp_path: Path, environment: dict[str, str]) -> None:
    for name in ("argparse", "msgspec", "fedtide"):
        (tmp_path / f"{name}.py").write_text(SAYS_SO)
    done = subprocess.run(
        module_command("fedtide", "--version"),
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("fedtide ")
    assert not (tmp_path / "it_ran").exists()


def test_a_child_finds_what_we_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    environment = module_environment(OMP_NUM_THREADS="1")
    assert environment["PYTHONPATH"].startswith(str(tmp_path))
    assert environment["OMP_NUM_THREADS"] == "1"
    assert module_command("a.b", "c", python="other") == ["other", "-P", "-m", "a.b", "c"]
