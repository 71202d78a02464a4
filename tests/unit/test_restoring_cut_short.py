"""A restoration of a whole server that fails, or is killed, between two of its folders."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup import restoring
from backup.sources import COORDINATOR_TOML, IDENTITY, REGISTRAR_TOML, of_file, of_identity
from backup.taking import take_backup
from fedtide.config import load_config
from registrar.config import RegistrarConfig
from registrar.layout import Layout
from tests.server import Server, refused, told
from tests.unit.test_backup import QUIET, Kept

MOVED = ("authority", "registry.db", "key.pem", "manifest.json", "coordinator.db")
"""One of each folder, and two of the registrar's."""


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Path, bytes]:
    """A server, its backup, and the key of the authority that it had."""
    folder = tmp_path_factory.mktemp("lost")
    server, kept = Server(folder), Kept(folder)
    layout = server.layout
    others = [
        of_file(COORDINATOR_TOML, layout.coordinator_toml),
        of_file(REGISTRAR_TOML, layout.registrar_toml),
        *of_identity(IDENTITY, layout.identity("coordinator")),
    ]
    config = load_config(layout.registrar_toml, RegistrarConfig)
    take_backup(kept.config, others, kept.out, QUIET, config)
    return server, kept.out, authority(layout)


@pytest.fixture
def server(lost: tuple[Server, Path, bytes]) -> Iterator[Server]:
    shutil.rmtree(lost[0].layout.root, ignore_errors=True)
    yield lost[0]
    shutil.rmtree(lost[0].layout.root, ignore_errors=True)


def authority(layout: Layout) -> bytes:
    return (layout.home("registrar") / "authority" / "key.pem").read_bytes()


def files(layout: Layout) -> list[Path]:
    return [path for path in layout.root.rglob("*") if not path.is_dir()]


def fail_at(name: str, patch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, target)

    patch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("name", MOVED)
def test_what_fails_leaves_nothing_and_can_be_repeated(
    lost: tuple[Server, Path, bytes], server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["server", "restore", str(lost[1]), "--root", str(server.layout.root)]
    with monkeypatch.context() as patch:
        fail_at(name, patch)
        assert "No space left on device" in refused(*words)
    assert not server.layout.root.exists()
    told(*words)
    assert authority(server.layout) == lost[2]
    assert not list(server.layout.root.rglob(".restoring"))
    server.init()
    assert authority(server.layout) == lost[2]


@pytest.mark.parametrize("name", MOVED)
def test_no_new_authority_is_made_beside_half_of_an_old_server(
    lost: tuple[Server, Path, bytes], server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed: nobody took anything back."""
    layout = server.layout
    words = ["server", "restore", str(lost[1]), "--root", str(layout.root)]
    with monkeypatch.context() as patch:
        fail_at(name, patch)
        patch.setattr(restoring, "_take_back", lambda *_: None)
        refused(*words)
    before = files(layout)
    init = ["server", "init", "127.0.0.1", "--federation", "tides", "--root", str(layout.root)]
    assert "a restoration was cut short" in refused(*init)
    assert files(layout) == before
    assert "there already" in refused(*words)
    shutil.rmtree(layout.etc)
    shutil.rmtree(layout.var)
    told(*words)
    assert authority(layout) == lost[2]
