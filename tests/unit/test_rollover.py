"""A new key of the coordinator: taken as a whole, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtide import rollover
from fedtide.errors import ConfigError, StateError
from fedtide.files import remove_tree
from fedtide.identity import Identity, load_identity
from fedtide.key_set import open_key_set
from fedtide.keys import public_bytes
from fedtide.messages import KeySet
from fedtide.rollover import held_identity, prepare_rollover
from tests.identities import Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def identity(tmp_path: Path, authority: Authority) -> Identity:
    return authority.identity(tmp_path / "identity", "coordinator")


def prepare(identity: Identity, authority: Authority, known: bytes = b"") -> KeySet:
    def certify(key: Ed25519PublicKey) -> bytes:
        return authority.certify("coordinator", key)

    folder, topics = identity.folder, authority.topics
    raw = prepare_rollover(folder, topics, authority.key, authority.pem, certify, known)
    key_set = open_key_set(authority.topics, raw, authority.public)
    assert isinstance(key_set, KeySet)
    return key_set


def taken(folder: Path) -> Identity:
    with held_identity(folder, "coordinator") as identity:
        return identity


def test_the_old_key_stays_until_the_next_start(identity: Identity, authority: Authority) -> None:
    before = public_bytes(identity.key)
    key_set = prepare(identity, authority)
    assert key_set.version > 1
    assert before not in key_set.coordinator
    assert public_bytes(load_identity(identity.folder).key) == before
    after = taken(identity.folder)
    assert key_set.coordinator == (public_bytes(after.key),)
    assert open_key_set(authority.topics, after.key_set(), authority.public) == key_set
    assert (identity.folder / "key.pem").stat().st_mode & 0o777 == 0o600
    assert not (identity.folder / "next").exists()
    assert public_bytes(taken(identity.folder).key) == public_bytes(after.key)


def test_one_that_was_not_taken_is_replaced(identity: Identity, authority: Authority) -> None:
    earlier = prepare(identity, authority)
    newest = prepare(identity, authority)
    assert newest.version > earlier.version
    assert newest.coordinator == (public_bytes(taken(identity.folder).key),)


def test_a_restored_folder_does_not_stay_behind_what_devices_know(
    identity: Identity, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = []
    for seconds in (2_000_000_000, 2_000_000_060):
        monkeypatch.setattr(rollover, "epoch_ms", lambda now=seconds: now * 1_000)
        identity.save_key_set(authority.key_set(1))  # from a backup
        shutil.rmtree(identity.folder / "next", ignore_errors=True)
        versions.append(prepare(identity, authority).version)
    assert versions == [2_000_000_000, 2_000_000_060]
    monkeypatch.setattr(rollover, "epoch_ms", lambda: 12_000)  # a clock that has none
    assert prepare(identity, authority).version == 2_000_000_061


@pytest.mark.parametrize("step", range(1, 30))
def test_cut_short_anywhere_it_is_the_old_or_the_new_one(
    identity: Identity, authority: Authority, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the calls that change the disk is the last one of a life."""

    class PowerCutError(BaseException):
        pass

    left = step

    def cut_after(module: object, name: str) -> None:
        real = getattr(module, name)

        def counted(*arguments: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise PowerCutError
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, counted)

    for module, name in [
        (rollover, "save_key"),
        (rollover, "write_atomically"),
        (rollover, "write_secret"),
        (rollover, "sync_folder"),
        (rollover, "make_folder"),
        (shutil, "rmtree"),
        (Path, "rename"),
    ]:
        cut_after(module, name)
    before = public_bytes(identity.key)
    try:
        prepare(identity, authority)
        assert public_bytes(taken(identity.folder).key) != before
        monkeypatch.undo()
        assert left > 0, "every step was cut"
        return
    except PowerCutError:
        monkeypatch.undo()
    after = taken(identity.folder)
    key_set = open_key_set(authority.topics, after.key_set(), authority.public)
    assert isinstance(key_set, KeySet)
    assert key_set.coordinator == (public_bytes(after.key),)
    last = prepare(identity, authority)
    assert last.version > key_set.version
    assert last.coordinator == (public_bytes(taken(identity.folder).key),)
    assert not [path for path in identity.folder.iterdir() if path.is_dir()]


def test_a_key_set_of_another_authority_is_not_followed(
    identity: Identity, authority: Authority
) -> None:
    identity.save_key_set(Authority().key_set(2**40))
    assert prepare(identity, authority).version < 2**40
    assert prepare(identity, authority, authority.key_set(2**40)).version == 2**40 + 1


def spoilt(folder: Path, name: str, how: str) -> None:
    """By whoever stole the key."""
    path = folder / name
    remove_tree(path)
    if how == "rubbish":
        path.write_bytes(b"rubbish")
    elif how == "link":
        path.symlink_to("/nowhere")
    elif how == "pipe":
        os.mkfifo(path)


@pytest.mark.parametrize("how", ["rubbish", "link", "pipe", "gone"])
def test_nothing_in_the_folder_has_to_be_of_any_use(
    identity: Identity, authority: Authority, how: str
) -> None:
    for name in ("key.pem", "certificate.pem", "ca.pem", "key_set"):
        spoilt(identity.folder, name, how)
    for name in ("next", ".next.new", ".next.done"):
        spoilt(identity.folder, name, how)
    key_set = prepare(identity, authority)
    after = taken(identity.folder)
    assert key_set.coordinator == (public_bytes(after.key),)
    assert open_key_set(authority.topics, after.key_set(), authority.public) == key_set


def test_one_that_an_older_version_prepared_is_taken(
    identity: Identity, authority: Authority
) -> None:
    key_set = prepare(identity, authority)
    (identity.folder / "next" / "ca.pem").unlink()
    assert key_set.coordinator == (public_bytes(taken(identity.folder).key),)


def test_what_was_prepared_and_is_no_file_keeps_nobody_waiting(
    identity: Identity, authority: Authority
) -> None:
    prepare(identity, authority)
    spoilt(identity.folder / "next", "key.pem", "pipe")
    with pytest.raises(StateError, match="no regular file"):
        taken(identity.folder)


def test_an_identity_is_held_by_one_process(identity: Identity) -> None:
    with (
        held_identity(identity.folder, "coordinator"),
        pytest.raises(StateError, match="in use by another coordinator"),
        held_identity(identity.folder, "coordinator"),
    ):
        pass


def test_no_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"), held_identity(tmp_path / "no", "client"):
        pass
    assert list(tmp_path.iterdir()) == []
