"""Processes that ours start: they find what we find, and nothing else."""

from __future__ import annotations

import os
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
    assert str(tmp_path) in environment["PYTHONPATH"].split(os.pathsep)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert module_command("a.b", "c", python="other") == ["other", "-P", "-m", "a.b", "c"]


def test_what_is_called_like_ours_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with a model's file that lies beside a folder `export`."""
    (tmp_path / "fedtide").mkdir()
    (tmp_path / "fedtide" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.syspath_prepend(tmp_path)
    done = subprocess.run(
        module_command("fedtide", "--version"),
        env=module_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("fedtide "), done.stderr
