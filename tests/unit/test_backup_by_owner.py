"""A backup is taken by root of what services own: none of them gets at what is another's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backup.archive import Contents
from backup.restoring import FILES, restore_backup
from fedtide.errors import ConfigError, StateError
from fedtide.files import FILE_BYTES_MAX, locked
from registrar.layout import Layout
from tests.server import Server, refused, told
from tests.unit.test_backup import QUIET, Kept

COORDINATOR, REGISTRAR = 65_533, 65_534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Server(tmp_path).layout


def give(folder: Path, user: int) -> None:
    """As on a real server; on the way there, others may pass."""
    for parent in folder.parents:
        if parent.stat().st_mode & 0o011 != 0o011:
            parent.chmod(0o755)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


def backup_words(layout: Layout, out: Path) -> list[str]:
    configs = ["--config", str(layout.coordinator_toml), "--registrar", str(layout.registrar_toml)]
    return ["server", "backup", *configs, "--out", str(out)]


def backed_up(layout: Layout, folder: Path) -> Contents:
    """Taken, and restored into `folder`."""
    out = folder.with_name("server.backup")
    told(*backup_words(layout, out))
    return restore_backup(out, {FILES: folder}, QUIET)


@root_only
def test_the_coordinator_gets_no_key_of_the_authority_by_links(
    layout: Layout, tmp_path: Path
) -> None:
    """It puts links into its own folder, and hopes that a restoration gives it what they name."""
    give(layout.home("coordinator"), COORDINATOR)
    give(layout.home("registrar"), REGISTRAR)
    authority, identity = layout.home("registrar") / "authority", layout.identity("coordinator")
    secret = (authority / "key.pem").read_bytes()
    (identity / "x.pem").symlink_to(authority / "key.pem")
    contents = backed_up(layout, tmp_path / "first")
    assert "files/registrar/authority/key.pem" in {entry.name for entry in contents.entries}
    stolen = [p for p in (tmp_path / "first" / "identity").rglob("*") if p.is_file()]
    assert len(stolen) == 4
    assert secret not in {path.read_bytes() for path in stolen}
    (identity / "next").symlink_to(authority)  # where files have the very names that are taken
    assert "Permission denied" in refused(*backup_words(layout, tmp_path / "second"))
    assert not (tmp_path / "second").exists()


def test_what_an_identity_has_is_taken_and_nothing_else(layout: Layout, tmp_path: Path) -> None:
    identity = layout.identity("coordinator")
    names = ["ca.pem", "certificate.pem", "key.pem", "key_set"]
    assert sorted(path.name for path in identity.iterdir()) == names
    names += ["next/certificate.pem", "next/key.pem", "next/key_set", "sequence.0", "sequence.1"]
    (identity / "next").mkdir()
    for name in (*names[4:], "lock", "notes.txt", "next/notes.txt"):
        (identity / name).write_bytes(name.encode())
    contents = backed_up(layout, tmp_path / "files")
    begin = "files/identity/"
    assert sorted(e.name for e in contents.entries if e.name.startswith(begin)) == [
        begin + name for name in sorted(names)
    ]
    assert (tmp_path / "files/identity/next/key.pem").read_bytes() == b"next/key.pem"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path.symlink_to("ca.pem"), "is a link"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link"),
        (os.mkfifo, "is no regular file"),
        (Path.mkdir, "is no regular file"),
        (lambda path: path.write_bytes(bytes(FILE_BYTES_MAX + 1)), "has more than"),
        (lambda path: None, "there is no"),
    ],
)
def test_what_is_no_file_of_ours_is_refused(
    layout: Layout, tmp_path: Path, make: Callable[[Path], object], match: str
) -> None:
    path = layout.identity("coordinator") / "key.pem"
    path.unlink()
    make(path)
    said = refused(*backup_words(layout, tmp_path / "out"))
    assert match in said
    assert str(path) in said
    assert not list(tmp_path.glob("*out*"))


def test_a_blob_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.federation.add("alpha", "beta", "gamma")
    kept.federation.run(kept.federation.finished)
    store = kept.federation.store
    model = store.blobs.path(store.models()[-1].ref.digest)
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="is a link"):
        kept.take()


def somebodys(path: Path) -> None:
    path.mkdir()
    os.chown(path, COORDINATOR, COORDINATOR)


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "make", [pytest.param(somebodys, marks=root_only), open_to_all, link, Path.touch]
)
def test_no_backup_is_made_in_a_folder_of_somebody_elses(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Who owns it can exchange what is being written, or was verified a moment ago."""
    kept = Kept(tmp_path)
    work = kept.out.with_name(".state.backup.new")
    make(work)
    with pytest.raises(ConfigError, match="no backup of yours has made it"):
        kept.take()
    assert [path for path in kept.out.parent.rglob("*") if path.is_file()] in ([], [work])


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError), locked(tmp_path / "folder", "backup"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@root_only
def test_blobs_and_bundle_are_read_with_the_coordinators_rights(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.federation.kill_coordinator()
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    give(kept.config.bundle, COORDINATOR)
    give(kept.config.state_dir, COORDINATOR)
    kept.take()
    train = kept.config.bundle / "train"
    train.rename(hidden / "train")
    train.symlink_to(hidden / "train")
    with pytest.raises(Exception, match="Permission denied"):
        kept.take()
    hidden.chmod(0o755)
    kept.take()
