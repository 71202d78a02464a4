"""What the system does not let this user do is a sentence that says sudo, never a traceback."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedtide.errors import AS_ROOT
from registrar.layout import Layout
from tests.server import refused, told

NOBODY = 65534
USED = (
    "backup.backup_command",
    "coordinator.doctor",
    "edge_client.membership.join_command",
    "registrar.doctor",
    "registrar.service",
    "tarfile",
)
"""An interpreter of root's own cannot be read by nobody: what is used is loaded before."""


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may do everything."""
    if os.geteuid() != 0:
        yield
        return
    for module in USED:
        importlib.import_module(module)
    os.setresuid(NOBODY, NOBODY, 0)  # a command would take us for root by the real one
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A server whose state nobody else may see."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where nobody else gets
        Path(name).chmod(0o755)
        layout = Layout(Path(name) / "root", system=False)
        told("server", "init", "h.example", "--federation", "f", "--root", str(layout.root))
        layout.var.chmod(0)
        yield layout
        layout.var.chmod(0o755)


def test_who_forgets_sudo_is_told(layout: Layout) -> None:
    coordinator, registrar = str(layout.coordinator_toml), str(layout.registrar_toml)
    state = str(layout.home("coordinator") / "state")
    for words in (
        ("status", coordinator, "--once"),
        ("models", "list", "--state-dir", state),
        ("models", "export", "--state-dir", state, "--out", "/tmp/x.onnx"),
        ("coordinator", "--config", coordinator),
        ("registrar", "--config", registrar),
        ("device", "list", "--config", registrar),
        (
            "server",
            "backup",
            "--config",
            coordinator,
            "--registrar",
            registrar,
            "--out",
            "/nowhere",
        ),
    ):
        with as_nobody():
            said = refused(*words)
        assert "Permission denied" in said, words
        assert AS_ROOT in said, words


def test_a_whole_server_is_backed_up_by_root() -> None:
    with as_nobody():
        said = refused("server", "backup", "--out", "/nowhere/b")
    assert "takes root's rights" in said
    assert AS_ROOT in said


def test_a_join_file_that_this_user_may_not_read(layout: Layout) -> None:
    file = layout.root / "pi-1.join"
    file.write_text("secret")
    file.chmod(0)
    with as_nobody():
        said = refused("device", "join", str(file), "--folder", "/nowhere")
    assert f"the join file {str(file)!r} is not yours to read" in said
    assert AS_ROOT in said
    assert "copy it again" not in said


def test_a_configuration_that_this_user_may_not_read(layout: Layout) -> None:
    layout.coordinator_toml.chmod(0)
    with as_nobody():
        said = refused("doctor", str(layout.coordinator_toml))
    assert f"'{layout.coordinator_toml}' is not yours to use: Permission denied" in said
    assert AS_ROOT in said


def test_a_doctor_says_it(layout: Layout) -> None:
    with as_nobody():
        assert AS_ROOT in refused("doctor", str(layout.coordinator_toml))
        said = told("doctor", str(layout.registrar_toml), code=8)
    assert "this is a bug" not in said
    assert AS_ROOT in said
