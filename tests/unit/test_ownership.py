"""Root writes in a service's folder as its owner."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from fedtide.ownership import as_owner_of

SOMEBODY = 65534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@root_only
def test_files_belong_to_the_owner_of_the_folder() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where nobody else gets
        folder = Path(name)
        folder.chmod(0o755)
        theirs, ours = folder / "theirs", folder / "ours"
        theirs.mkdir(mode=0o700)
        ours.mkdir(mode=0o700)
        os.chown(theirs, SOMEBODY, SOMEBODY)
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
