"""`fedtide server rotate-key`: the right key, and the old one counts until there is a new one."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from fedtide import files, ownership, rollover, units
from fedtide.errors import FedtideError, StateError
from fedtide.identity import load_identity, read_certificate, write_identity
from fedtide.keys import new_key
from fedtide.rollover import held_identity
from registrar import rotate_command
from registrar.authority import Authority
from registrar.layout import Layout
from registrar.office import opened
from tests.server import refused, told
from tests.unit.test_rollover import spoilt

COORDINATOR, REGISTRAR = 65534, 65533


def made(layout: Layout, federation: str = "tides") -> Layout:
    told("server", "init", "localhost", "--federation", federation, "--root", str(layout.root))
    return layout


def words(layout: Layout, coordinator_toml: Path | None = None) -> list[str]:
    which = str(coordinator_toml or layout.coordinator_toml)
    config = str(layout.registrar_toml)
    return ["server", "rotate-key", "--config", config, "--coordinator-config", which]


def good(layout: Layout, name: str = "coordinator") -> list[int]:
    """Serial numbers of the certificates that are not revoked."""
    with opened(layout.registrar_toml) as office:
        every = office.registry.certificates()
    return [c.serial for c in every if c.name == name and c.revoked_at_ms is None]


def serial(layout: Layout) -> int:
    """Of the certificate in use."""
    return read_certificate(layout.identity("coordinator") / "certificate.pem").serial_number


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return made(Layout(tmp_path / "root", system=False))


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may look into; pytest's own lies where nobody else gets."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_each_service_is_another_user(folder: Path) -> None:
    layout = made(Layout(folder / "root", system=False))
    for role, owner in (("coordinator", COORDINATOR), ("registrar", REGISTRAR)):
        home = layout.var / role
        for path in (home, *home.rglob("*")):
            os.chown(path, owner, owner)
    shutil.chown(layout.members.parent, REGISTRAR, REGISTRAR)
    shutil.chown(layout.members, REGISTRAR, REGISTRAR)
    before = serial(layout)
    assert told(*words(layout)).startswith("the coordinator has a new key")
    for role, owner in (("coordinator", COORDINATOR), ("registrar", REGISTRAR)):
        assert {path.stat().st_uid for path in (layout.var / role).rglob("*")} == {owner}
    with held_identity(layout.identity("coordinator"), "coordinator") as identity:
        assert good(layout) == [identity.certificate.serial_number] != [before]


@pytest.mark.parametrize("step", range(1, 7))
def test_cut_short_the_key_in_use_counts_until_there_is_a_next_one(
    layout: Layout, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at one write after another."""
    left = step

    def write(*arguments: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise StateError("no room", no_room=True)
        real(*arguments)  # type: ignore[arg-type]

    real = files._write
    monkeypatch.setattr(files, "_write", write)
    with opened(layout.registrar_toml) as office:
        try:
            rotate_command._replace(office, layout.identity("coordinator"))
        except StateError:
            assert serial(layout) in good(layout)
        else:
            assert step == 6, "every write was cut"
    monkeypatch.undo()
    told(*words(layout))
    with held_identity(layout.identity("coordinator"), "coordinator") as identity:
        assert good(layout) == [identity.certificate.serial_number]
    assert len(good(layout, "registrar")) == len(good(layout, "observer")) == 1


def test_nothing_is_revoked_before_the_next_key_is_there(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(folder: Path) -> None:
        raise StateError(f"{folder}: cut")

    monkeypatch.setattr(rollover, "_remove_next", cut)
    refused(*words(layout))
    assert not (layout.identity("coordinator") / "next").exists()
    assert serial(layout) in good(layout)


@pytest.mark.parametrize("how", ["rubbish", "pipe", "gone"])
@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "ca.pem", "key_set"])
def test_who_has_stolen_the_key_cannot_keep_it_by_spoiling_the_folder(
    layout: Layout, name: str, how: str
) -> None:
    folder, before = layout.identity("coordinator"), serial(layout)
    spoilt(folder, name, how)
    said = told(*words(layout))
    assert ("is of no use, and is replaced" in said) == (name != "key_set")
    with held_identity(folder, "coordinator") as identity:
        assert good(layout) == [identity.certificate.serial_number] != [before]
    with opened(layout.registrar_toml) as office:
        revoked = x509.load_pem_x509_crl((office.config.broker_dir / "revoked.pem").read_bytes())
    assert revoked.get_revoked_certificate_by_serial_number(before)


@pytest.mark.parametrize("whose", ["another authority's", "a device's"])
def test_nor_by_putting_an_identity_there_that_is_none_of_its_own(
    layout: Layout, tmp_path: Path, whose: str
) -> None:
    folder, before, key = layout.identity("coordinator"), serial(layout), new_key()
    now = datetime.now(UTC)
    if whose == "a device's":
        authority = Authority.open(layout.home("registrar") / "authority")
        pem = authority.sign_device("pi-1", key.public_key(), now)
        said = "it is that of 'pi-1'"
    else:
        authority = Authority.make(tmp_path / "another", "tides", now)
        pem = authority.sign_role("coordinator", key.public_key())
        said = "another authority has signed it"
    shutil.rmtree(folder)
    write_identity(folder, key, pem, authority.certificate_pem, b"")
    assert f"is of no use, and is replaced: {said}" in told(*words(layout))
    with held_identity(folder, "coordinator") as identity:
        assert good(layout) == [identity.certificate.serial_number] != [before]


def test_a_folder_that_cannot_be_written_says_that_the_old_key_counts(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StateError("cannot use the folder")

    monkeypatch.setattr(rollover, "save_key", refuse)
    said = refused(*words(layout))
    assert "the old key still counts" in said
    assert "make an empty folder of the same owner" in said
    monkeypatch.undo()
    folder = layout.identity("coordinator")
    folder.rename(folder.with_name("aside"))
    folder.mkdir(mode=0o700)
    told(*words(layout))
    with held_identity(folder, "coordinator") as identity:
        assert good(layout) == [identity.certificate.serial_number]


def test_whether_or_not_it_starts_again_the_old_key_is_refused(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = serial(layout)

    def fail(*_: object) -> None:
        raise FedtideError("fedtide-coordinator.service does not start")

    monkeypatch.setattr(rotate_command, "_SYSTEM", layout)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(ownership, "_become", lambda *_: None)
    for name, found in (("systemd_runs", True), ("is_running", True)):
        monkeypatch.setattr(units, name, lambda *_, found=found: found)
    monkeypatch.setattr(units, "start", fail)
    with pytest.raises(FedtideError, match="does not start"):
        rotate_command.run(
            argparse.Namespace(
                config=layout.registrar_toml, coordinator_config=layout.coordinator_toml
            )
        )
    monkeypatch.undo()
    with opened(layout.registrar_toml) as office:
        revoked = x509.load_pem_x509_crl((office.config.broker_dir / "revoked.pem").read_bytes())
    assert revoked.get_revoked_certificate_by_serial_number(before)


def test_only_the_coordinator_of_this_federation_gets_another_key(
    layout: Layout, tmp_path: Path
) -> None:
    other = made(Layout(tmp_path / "other", system=False), "ebb")
    same = made(Layout(tmp_path / "same", system=False))
    missing = tmp_path / "missing.toml"
    missing.write_text(
        f'federation = "tides"\nidentity = "nowhere"\nmembers = "{layout.members}"\n'
    )
    misnamed = tmp_path / "misnamed.toml"
    identity = layout.identity("coordinator")
    misnamed.write_text(
        f'federation = "ebb"\nidentity = "{identity}"\nmembers = "{layout.members}"\n'
    )
    alone = tmp_path / "alone.toml"
    alone.write_text(f'federation = "tides"\nidentity = "{identity}"\n')
    nobody = tmp_path / "nobody.toml"
    nobody.write_text('identity = "~nobody-there/x"\n')
    before = good(layout)
    for path, said in (
        (layout.registrar_toml, "is the registrar's, not the coordinator's"),
        (alone, f"whose `members` is '{layout.members}'"),
        (other.coordinator_toml, "not of the federation 'tides' of this registrar"),
        (same.coordinator_toml, "not of the federation 'tides' of this registrar"),
        (missing, "nowhere"),
        (nobody, "'~nobody-there/x' is no path"),
        (misnamed, "not of the federation 'tides' of this registrar"),
        (layout.etc, "Is a directory"),
    ):
        assert said in refused(*words(layout, path))
    assert good(layout) == before == [serial(layout)]
    for one in (layout, other, same):
        assert load_identity(one.identity("coordinator"))
        assert not (one.identity("coordinator") / "next").exists()
