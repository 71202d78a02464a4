"""Root's installer in the folder of a client that was broken into."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from device_installer import __main__ as installer
from device_installer import trial
from device_installer.client_state import give_back, keep
from device_installer.layout import Layout
from device_installer.telling import Refused

SOMEBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A device whose client's folder is somebody else's, if we may give it away."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where nobody else gets
        root = Path(name)
        root.chmod(0o755)
        layout = Layout(root)
        layout.state.mkdir(parents=True)
        layout.trial.mkdir(parents=True)
        (layout.trial / "state").mkdir()
        (layout.state / "session.0").write_text("saved")
        if os.geteuid() == 0:
            for path in (layout.state.parent, layout.state, layout.state / "session.0"):
                os.chown(path, SOMEBODY, SOMEBODY)
        yield layout


def kept(layout: Layout) -> dict[str, str]:
    return {path.name: path.read_text() for path in (layout.trial / "state").iterdir()}


def replace_state(layout: Layout, target: Path) -> None:
    layout.state.rename(layout.state.with_name("away"))
    layout.state.symlink_to(target)


def test_what_was_kept_is_given_back_and_nothing_of_the_other_version_is_left(
    layout: Layout,
) -> None:
    (layout.state / "session.sh").write_text("no session")
    keep(layout, layout.trial / "state")
    assert kept(layout) == {"session.0": "saved"}
    (layout.state / "session.0").write_text("new")
    (layout.state / "session.1").write_text("new")
    give_back(layout.trial / "state", layout)
    found = {path.name: path.read_text() for path in layout.state.iterdir()}
    assert found == {"session.0": "saved", "session.sh": "no session"}
    status = (layout.state / "session.0").stat()
    expected = SOMEBODY if os.geteuid() == 0 else os.geteuid()
    assert (status.st_uid, status.st_mode & 0o777) == (expected, 0o600)


def test_what_is_no_session_is_not_taken(layout: Layout) -> None:
    path = layout.state / "session.1"
    secret = layout.root / "secret"
    secret.write_text("root's")

    def large() -> None:
        path.touch()
        os.truncate(path, (1 << 24) + 1)

    places: list[Callable[[], None]] = [
        lambda: path.symlink_to(secret),
        lambda: path.symlink_to("/dev/zero"),
        lambda: os.mkfifo(path),
        large,
    ]
    for place in places:
        place()
        with pytest.raises(Refused, match=r"session\.1"):
            keep(layout, layout.trial / "state")
        assert kept(layout) == {}
        path.unlink()


@root_only
def test_no_secret_is_read_by_way_of_a_hard_link(layout: Layout) -> None:
    secret = layout.root / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    (layout.state / "session.1").hardlink_to(secret)
    with pytest.raises(PermissionError):
        keep(layout, layout.trial / "state")


@pytest.mark.parametrize("name", ["session.0", "session.sh"])
def test_nothing_is_written_where_the_state_folder_leads(
    name: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service cannot start with what it finds, whose folder was exchanged meanwhile."""
    profile = layout.root / "etc/profile.d"
    profile.mkdir(parents=True)
    (layout.state / name).write_text("the attacker's")
    keep(layout, layout.trial / "state")
    replace_state(layout, profile)
    failed = CompletedProcess([], 1, "", "failed")
    monkeypatch.setattr(trial, "systemd", lambda *_, **__: failed)
    trial.end_trial(layout, 1)
    assert list(profile.iterdir()) == []
    assert not layout.trial.exists(), "nor does it keep the device from another update"


@root_only
def test_nothing_is_written_that_the_clients_user_could_not(layout: Layout) -> None:
    """Also where no link is followed, such as by a mount or a folder that root left there."""
    keep(layout, layout.trial / "state")
    os.chown(layout.state, 0, 0)
    layout.state.chmod(0o755)
    with pytest.raises(PermissionError):
        give_back(layout.trial / "state", layout)
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_no_link_is_followed_even_to_a_folder_of_the_clients_user(layout: Layout) -> None:
    keep(layout, layout.trial / "state")
    replace_state(layout, layout.state.with_name("away"))
    for follow in (keep, lambda layout, folder: give_back(folder, layout)):
        with pytest.raises(OSError, match="Not a directory"):
            follow(layout, layout.trial / "state")


@root_only
def test_a_version_is_tried_with_the_rights_of_the_clients_user(layout: Layout) -> None:
    layout.config.parent.mkdir(parents=True)
    layout.config.touch()
    python = layout.versions / "1.0/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$(id -u) $(id -g) $(id -G) $*"\n[ $# = 3 ]\n')
    python.chmod(0o755)
    groups = os.getgroups()
    os.setgroups([4])
    try:
        fault = installer._fault_of(python.parent.parent, layout)
    finally:
        os.setgroups(groups)
    assert fault is not None, "it was tried with the configuration, too"
    assert fault.startswith(f"{SOMEBODY} {SOMEBODY} {SOMEBODY} -I"), fault
    # Without, it is root's: what is compiled can be kept.
    python.write_text('#!/bin/sh\necho "$(id -u) $*"\nfalse\n')
    assert installer._fault_of(python.parent.parent, layout) == "0 -I -m edge_client.self_check"
