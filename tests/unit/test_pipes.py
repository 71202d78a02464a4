"""A pipe where a service keeps a file keeps nobody waiting, root's commands least of all: whoever
has broken into a service can put one into its folder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client.data import Problems, open_source
from edge_client.data.rows import FileRows
from fedtide.blobs import BlobStore
from fedtide.dataset import load_dataset
from fedtide.errors import ConfigError, DataError
from fedtide.files import NoFileOfOursError, read_checked, read_regular
from fedtide.host_check import is_locked
from fedtide.join_code import write_join_code
from fedtide.keys import load_key
from fedtide.launch import module_command, module_environment
from fedtide.manifest import Array
from fedtide.members import Members
from registrar.broker_control import broker_process
from registrar.layout import Layout
from tests.contract.local_data import KINDS, MANIFEST, examples
from tests.server import refused, told
from tests.unit.test_membership import code_of, over_identity

WAIT_S = 20


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Who opens a pipe waits until another does."""

    def tired(*_: object) -> None:
        raise AssertionError("somebody waits at a pipe")

    before = signal.signal(signal.SIGALRM, tired)
    signal.setitimer(signal.ITIMER_REAL, WAIT_S, WAIT_S)  # whoever swallows it hears it again
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root", system=False)
    told("server", "init", "h.example", "--federation", "tides", "--root", str(layout.root))
    return layout


def pipe(path: Path) -> Path:
    """In the place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    return path


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    make(path)
    for read in (read_regular, read_checked):
        with pytest.raises(Exception, match="it is no regular file"):
            read(path)


def test_links_are_followed_where_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(NoFileOfOursError, match="it is a link"):
        read_regular(tmp_path / "link", links=False)
    with pytest.raises(NoFileOfOursError, match="it has more than 4 bytes"):
        read_regular(tmp_path / "file", 4)


def test_a_key_a_lock_a_blob(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the private key .*no regular file"):
        load_key(pipe(tmp_path / "key.pem"))
    assert not is_locked(pipe(tmp_path / "lock").parent)
    blobs = BlobStore(tmp_path / "state", read_only=True)
    with pytest.raises(NoFileOfOursError):
        blobs.read(pipe(blobs.path("ab" * 32)).name)


def test_the_list_of_members(tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    path.write_bytes(b'{"devices": {}}')
    members = Members(path)
    with pytest.raises(
        ConfigError, match=r"members\.json' cannot be read: it is no regular file\n"
    ):
        Members(pipe(path))
    assert members.key("alpha") is None


def test_the_brokers_process_id(layout: Layout) -> None:
    pipe(layout.home("broker") / "broker.pid")
    assert broker_process(layout.broker_dir) is None
    assert "the broker does not run here" in told(
        "device", "add", "one", "--config", str(layout.registrar_toml)
    )


def test_server_init_again(layout: Layout) -> None:
    path = pipe(layout.identity("coordinator") / "key_set")
    words = ("server", "init", "h.example", "--federation", "tides", "--root", str(layout.root))
    assert f"cannot use '{path}': it is no regular file" in refused(*words)


@pytest.mark.parametrize("name", ["members.json", "acl", "revoked.pem"])
def test_the_lists_of_the_registry(layout: Layout, name: str) -> None:
    """What is no list of ours is replaced."""
    config = ["--config", str(layout.registrar_toml)]
    path = layout.members if name == "members.json" else layout.broker_dir / name
    for words in (
        ["device", "add", "one", *config],
        ["device", "revoke", "one", *config],
        ["server", "rotate-key", *config, "--coordinator-config", str(layout.coordinator_toml)],
        ["server", "init", "h.example", "--federation", "tides", "--root", str(layout.root)],
    ):
        pipe(path)
        if name == "members.json":
            told("doctor", str(layout.registrar_toml), code=8)
        told(*words)
        assert path.is_file()


def test_joining_again(tmp_path: Path) -> None:
    over_identity(tmp_path / "pi" / "identity", "join-1")
    path = pipe(tmp_path / "pi" / "identity" / "joined_by")
    code = write_join_code(code_of("join-2"))
    said = refused("device", "join", code, "--folder", str(tmp_path / "pi"))
    assert f"cannot use '{path}': it is no regular file" in said


def said_by(*words: str) -> str:
    """In a process of its own: SQLite waits at a pipe whatever signal comes."""
    command = module_command("fedtide", *words)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=module_environment(),
        check=False,
    )
    assert done.returncode in (7, 8), done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("coordinator.db", "backup"),
        ("coordinator.db-wal", "models"),
        ("coordinator.db-journal", "doctor"),
        ("registry.db", "backup"),
        ("registry.db", "device"),
    ],
)
def test_databases(layout: Layout, tmp_path: Path, name: str, action: str) -> None:
    state = layout.home("coordinator") / "state"
    state.mkdir(exist_ok=True)
    (state / "coordinator.db").touch()
    path = pipe((layout.home("registrar") if name == "registry.db" else state) / name)
    toml, registrar = str(layout.coordinator_toml), str(layout.registrar_toml)
    out = ["--out", str(tmp_path / "out")]
    words = {
        "backup": ["server", "backup", "--config", toml, "--registrar", registrar, *out],
        "models": ["models", "list", "--state-dir", str(state)],
        "doctor": ["doctor", toml],
        "device": ["device", "list", "--config", registrar],
    }
    said = said_by(*words[action])
    assert "it is no regular file" in said
    assert str(path) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["npz", "npy", "csv", "sqlite", "function"])
def test_local_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kind = KINDS[name](tmp_path)
    kind.write(*examples(5))
    source, path = open_source(kind.config()), kind.config().path
    assert path is not None
    pipe(path)
    with pytest.raises(DataError, match=r"cannot be read.* it is no regular file"):
        source.stamp()
    if name == "function":
        return  # it has a time limit
    # It may also have come after that.
    monkeypatch.setattr(f"edge_client.data.{type(source).__module__[17:]}.file_stamp", print)
    for read in (lambda: source.describe(Problems()), lambda: source.load(MANIFEST, Problems())):
        with pytest.raises(DataError, match=r"cannot be read.* it is no regular file"):
            read()


def test_other_examples(tmp_path: Path) -> None:
    path = pipe(tmp_path / "d.npz")
    with pytest.raises(DataError, match=r"cannot be read.* it is no regular file"):
        load_dataset(path, MANIFEST)
    rows = FileRows(path, 0, (1,), np.dtype("int64"), Array((), "int64"), None)
    with pytest.raises(DataError, match="cannot be read"):
        rows[:1]
