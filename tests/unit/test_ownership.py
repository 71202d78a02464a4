"""Root writes in a service's folder as its owner."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedtide.ownership import as_owner_of

SOMEBODY = 65534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may look into; pytest's own lies where nobody else gets."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def given(folder: Path, owner: int) -> Path:
    """A new folder, closed to all but its owner."""
    folder.mkdir(mode=0o700)
    os.chown(folder, owner, owner)
    return folder


@root_only
def test_files_belong_to_the_owner_of_the_folder(folder: Path) -> None:
    theirs, ours = given(folder / "theirs", SOMEBODY), given(folder / "ours", 0)
    with as_owner_of(theirs):
        (theirs / "a").touch()
        with pytest.raises(PermissionError):
            (ours / "a").touch()
        with as_owner_of(ours):
            (ours / "b").touch()
        (theirs / "c").touch()
    (ours / "d").touch()
    owners = {path.name: path.stat().st_uid for path in (*theirs.iterdir(), *ours.iterdir())}
    assert owners == {"a": SOMEBODY, "c": SOMEBODY, "b": 0, "d": 0}


@root_only
def test_from_one_service_to_what_lies_in_another_closed_one(folder: Path) -> None:
    first, other = given(folder / "first", SOMEBODY), given(folder / "other", SOMEBODY - 1)
    identity = given(other / "identity", SOMEBODY - 1)
    beyond = given(given(folder / "ours", 0) / "beyond", SOMEBODY - 1)
    with as_owner_of(first):
        with as_owner_of(identity):
            (identity / "a").touch()
        with as_owner_of(beyond):
            assert os.geteuid() == SOMEBODY - 1
        assert os.geteuid() == SOMEBODY
        with as_owner_of(folder / "nowhere" / "at" / ".." / "all"):
            assert os.geteuid() == 0
        with as_owner_of(identity / "nowhere"):
            assert os.geteuid() == SOMEBODY - 1
        assert os.geteuid() == SOMEBODY
    assert (identity / "a").stat().st_uid == SOMEBODY - 1


@root_only
@pytest.mark.parametrize("target", ["ours", "other", "other/identity", "nowhere", ".", "/", "to"])
def test_whoever_has_the_folder_does_not_choose_as_whom_root_works_in_it(
    folder: Path, target: str
) -> None:
    given(folder / "ours", 0)
    given(given(folder / "other", SOMEBODY - 1) / "identity", SOMEBODY - 1)
    theirs = given(folder / "theirs", SOMEBODY)
    (theirs / "to").symlink_to(folder / target if target != "to" else "to")  # root's own, at that
    for path in (theirs / "to", theirs / "to" / "x", theirs / "to" / ".." / "ours"):
        with as_owner_of(path):
            assert os.geteuid() == SOMEBODY


@root_only
def test_links_of_root_are_followed_up_to_somebody_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(given(folder / "disk", 0) / "theirs", SOMEBODY)
    (folder / "absolute").symlink_to(folder / "disk")
    (folder / "relative").symlink_to("disk/../absolute")
    (folder / "loop").symlink_to("loop")
    monkeypatch.chdir(folder)
    for way in ("absolute", "relative", "disk/../relative", folder / "relative"):
        with as_owner_of(Path(way)):
            assert os.geteuid() == 0
        with as_owner_of(Path(way) / "theirs"):
            assert os.geteuid() == SOMEBODY
    with pytest.raises(OSError, match="symbolic links"), as_owner_of(folder / "loop" / "x"):
        pass
    os.chown(folder / "absolute", SOMEBODY, SOMEBODY, follow_symlinks=False)
    with as_owner_of(folder / "relative"):
        assert os.geteuid() == SOMEBODY


@root_only
def test_an_error_does_not_leave_us_as_somebody_else(tmp_path: Path) -> None:
    os.chown(tmp_path, SOMEBODY, SOMEBODY)
    groups = os.getgroups()
    with suppress(ZeroDivisionError), as_owner_of(tmp_path):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (SOMEBODY, SOMEBODY, [])
        raise ZeroDivisionError
    assert (os.geteuid(), os.getgroups()) == (0, groups)


def test_our_own_folder_changes_nothing(tmp_path: Path) -> None:
    before = os.geteuid(), os.getegid()
    with as_owner_of(tmp_path):
        assert (os.geteuid(), os.getegid()) == before
