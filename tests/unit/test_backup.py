"""Backups: of one moment, whole or not there; put back only if they are what was written."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backup import restoring, sources, taking
from backup.archive import (
    Contents,
    Entry,
    archive_bytes,
    contents_name,
    is_entry_name,
    read_contents,
    read_entries,
    write_archive,
)
from backup.progress import Progress
from backup.restoring import FILES, STATE, check_backup, restore_backup
from backup.sources import of_bytes
from backup.taking import HOLD_NAME, take_backup
from coordinator.config import CoordinatorConfig, HistoryConfig
from coordinator.figures import BACKUP_NAME
from coordinator.recompute import recompute
from coordinator.store import Store
from fedtide.bundle import sha256_hex
from fedtide.config import load_config, toml_string
from fedtide.errors import ConfigError, DamagedError, StateError
from fedtide.files import locked
from fedtide.sequence import EPOCH_MS_MAX, Sequence
from registrar.config import RegistrarConfig
from registrar.layout import STAGING_NAME
from tests.federation import Federation
from tests.server import Server, refused, told

QUIET = Progress(quiet=True)


class Kept:
    """A federation in memory whose coordinator can be backed up and restored."""

    def __init__(self, folder: Path, rounds_kept: int = 100, **rounds: int) -> None:
        rounds = {"devices_min": 3, **rounds}
        self.federation = Federation(folder / "first", local=0, plan=None, **rounds)
        self.out = folder / "backups" / "state.backup"
        self.out.parent.mkdir()
        bundle = folder / "bundle"
        bundle.mkdir()
        manifest = self.federation.bundle.manifest
        for name in ("manifest.json", *manifest.files):
            (bundle / name).write_bytes(self.federation.bundle.fetch(name))
        self.config: CoordinatorConfig = msgspec.structs.replace(
            self.federation.config, bundle=bundle, history=HistoryConfig(rounds_kept)
        )

    def take(self) -> Contents:
        return take_backup(self.config, [of_bytes("files/coordinator.toml", b"x")], self.out, QUIET)

    def lose_and_restore(self, folder: Path) -> None:
        """The disk is gone; the same devices meet the coordinator of the backup."""
        federation = self.federation
        if federation.coordinator_alive:
            federation.kill_coordinator()
        restore_backup(self.out, {STATE: folder / "coordinator"}, QUIET)
        federation.folder = folder
        federation.boot_coordinator()


def held(federation: Federation, *names: str) -> None:
    for name in names:
        federation.devices[name].runner.held = True


def counted(store: Store) -> list[tuple[int, str]]:
    """Round and device of every update that counts."""
    rows = store._db.execute("SELECT round_id, device_id FROM updates WHERE verdict = 'accepted'")
    return sorted(rows)


def test_devices_go_on_with_a_coordinator_that_knows_less_than_they(tmp_path: Path) -> None:
    """A backup in the middle of round 2; three rounds later all is lost but that."""
    kept = Kept(tmp_path, count=5)
    federation = kept.federation
    federation.add("alpha", "beta", "gamma")
    held(federation, "gamma")
    federation.run(lambda: bool(federation.store.updates(1)))
    federation.devices["gamma"].runner.finish()
    federation.run(lambda: len(federation.store.updates(2)) == 2)
    contents = kept.take()
    assert contents.model_version == 1
    run_id = federation.store.fact("run_id")
    before = counted(federation.store)
    federation.devices["gamma"].runner.held = False
    federation.devices["gamma"].runner.finish()
    federation.run(lambda: federation.store.load_state().model_version == 5)
    kept.lose_and_restore(tmp_path / "second")
    store = federation.store
    assert store.fact("run_id") != run_id
    assert counted(store) == before
    assert store.load_state().model_version == 1
    federation.run(federation.finished)
    assert [model.version for model in store.models()] == [0, 1, 2, 3, 4, 5]
    everything = counted(store)
    assert len(set(everything)) == len(everything)
    for model in store.models()[1:]:
        assert recompute(store, model) == model.ref.digest
        assert len(store.parts(model.round_id)) == 3
    assert not any(device.session.blobs.digests() == [] for device in federation.devices.values())
    check_backup(kept.out, QUIET)


def test_without_a_run_of_its_own_the_restored_rounds_would_wait_for_devices_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: why `begin_anew` is there."""
    monkeypatch.setattr(restoring, "begin_anew", lambda _store: None)
    kept = Kept(tmp_path, count=3, abandoned_max=3)
    federation = kept.federation
    federation.add("alpha", "beta", "gamma")
    held(federation, "alpha", "beta", "gamma")
    federation.run(lambda: federation.store.load_state().round_id == 1)
    kept.take()
    for device in federation.devices.values():
        device.runner.held = False
        device.runner.finish()
    federation.run(lambda: federation.store.load_state().model_version == 3)
    kept.lose_and_restore(tmp_path / "second")
    federation.run(federation.finished)
    assert federation.store.load_state().abandoned_in_a_row == 3


def test_an_update_that_lost_its_coordinator_counts_nowhere(tmp_path: Path) -> None:
    """It was made for the lost run and is offered to the restored one: discarded, trained anew."""
    kept = Kept(tmp_path, count=2)
    federation = kept.federation
    federation.add("alpha", "beta", "gamma")
    held(federation, "gamma")
    federation.run(lambda: len(federation.store.updates(1)) == 2)
    kept.take()
    federation.kill_coordinator()
    federation.devices["gamma"].runner.held = False
    federation.devices["gamma"].runner.finish()
    kept.lose_and_restore(tmp_path / "second")
    federation.run(federation.finished)
    assert federation.store.counts()["discarded: foreign"] >= 1
    assert len(federation.store.updates(1)) == 3


def test_a_backup_is_one_private_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.federation.add("alpha", "beta", "gamma")
    kept.federation.run(kept.federation.finished)
    contents = kept.take()
    assert [path.name for path in kept.out.parent.iterdir()] == ["state.backup"]
    assert stat.S_IMODE(kept.out.stat().st_mode) == 0o600
    assert not (kept.config.state_dir / HOLD_NAME).exists()
    assert (kept.config.state_dir / BACKUP_NAME).exists()
    listed = subprocess.run(
        ["tar", "tf", str(kept.out)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed[0].startswith("contents-")
    assert listed[1:] == [*(entry.name for entry in contents.entries)]
    assert "files/bundle/manifest.json" in listed
    first = kept.out.read_bytes()
    kept.take()
    assert kept.out.read_bytes() != first, "replaced"


def test_one_that_was_killed_is_cleared_away_and_one_that_runs_is_left_alone(
    tmp_path: Path,
) -> None:
    kept = Kept(tmp_path)
    work = kept.out.with_name(".state.backup.new")
    hold = kept.config.state_dir / HOLD_NAME
    for folder in (work, hold):
        folder.mkdir(mode=0o700, parents=True)
        (folder / "lock").touch()
        (folder / ("a" * 64)).write_bytes(b"half")
    with locked(hold, "backup"), pytest.raises(StateError, match="in use by another backup"):
        kept.take()
    with locked(work, "backup"), pytest.raises(StateError, match="in use by another backup"):
        kept.take()
    assert work.exists()
    contents = kept.take()
    assert not any("aaaa" in entry.name for entry in contents.entries)
    assert [path.name for path in kept.out.parent.iterdir()] == ["state.backup"]
    assert not hold.exists()


def test_what_is_restored_is_what_was_there(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.federation.add("alpha", "beta", "gamma")
    kept.federation.run(kept.federation.finished)
    kept.take()
    state, files = tmp_path / "a" / "state", tmp_path / "files"
    restore_backup(kept.out, {STATE: state, FILES: files}, QUIET)
    assert sorted(path.name for path in state.iterdir()) == ["blobs", "coordinator.db", "partial"]
    assert (files / "coordinator.toml").read_bytes() == b"x"
    assert (files / "bundle" / "train").read_bytes() == b"train"
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (*state.rglob("*"), *files.rglob("*"))}
    assert modes == {0o600, 0o700}
    store = Store(state)
    assert all(store.blobs.read(model.ref.digest) for model in store.models())
    store.close()


def test_blobs_that_go_away_while_they_are_looked_at_are_looked_for_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one round kept, rounds that go on remove what the first look has found."""
    kept = Kept(tmp_path, rounds_kept=1, count=6)
    kept.federation.config = kept.config
    kept.federation.kill_coordinator()
    kept.federation.boot_coordinator()
    federation, real, looks = kept.federation, taking._linked, [0]
    federation.add("alpha", "beta", "gamma")
    held(federation, "gamma")
    federation.run(lambda: len(federation.store.updates(1)) == 2)

    def slow(store: Store, folder: Path, digest: str) -> bool:
        looks[0] += 1
        if looks[0] == 1:  # everything goes on, and what was named is removed
            federation.devices["gamma"].runner.held = False
            federation.devices["gamma"].runner.finish()
            federation.run(federation.finished)
        return real(store, folder, digest)

    monkeypatch.setattr(taking, "_linked", slow)
    contents = kept.take()
    assert contents.left_out == ()
    assert contents.model_version == 6
    kept.lose_and_restore(tmp_path / "second")


def test_what_goes_away_after_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path)
    kept.federation.add("alpha", "beta", "gamma")
    kept.federation.run(kept.federation.finished)
    real = sources.copied_database

    def copied(*arguments: Any) -> object:
        for path in (kept.config.state_dir / "blobs").iterdir():
            path.unlink()
        kept.federation.store._db.execute("DELETE FROM models")
        return real(*arguments)

    monkeypatch.setattr(taking, "copied_database", copied)
    contents = kept.take()
    assert contents.left_out == ()
    restore_backup(kept.out, {STATE: tmp_path / "state"}, QUIET)


def test_an_update_that_is_lost_or_damaged_is_left_out_and_a_model_is_not(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.federation.add("alpha", "beta", "gamma")
    kept.federation.run(kept.federation.finished)
    store = kept.federation.store
    first, second, *_ = [u.blob.digest for u in store.updates(1) if u.blob is not None]
    store.blobs.path(first).unlink()
    store.blobs.path(second).write_bytes(b"damaged")
    contents = kept.take()
    assert set(contents.left_out) == {first, second}
    restore_backup(kept.out, {STATE: tmp_path / "a"}, QUIET)
    good = kept.out.read_bytes()
    model = store.models()[-1].ref.digest
    for gone in (False, True):
        store.blobs.path(model).write_bytes(b"damaged")
        if gone:
            store.blobs.path(model).unlink()
        with pytest.raises(DamagedError, match=r"is damaged on disk|is gone"):
            kept.take()
    assert kept.out.read_bytes() == good
    assert len(list(kept.out.parent.iterdir())) == 1


def test_no_state_and_another_bundle_are_messages(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    nowhere = msgspec.structs.replace(kept.config, state_dir=tmp_path / "nowhere")
    with pytest.raises(StateError, match="no coordinator state"):
        take_backup(nowhere, [], kept.out, QUIET)
    (kept.config.bundle / "manifest.json").write_bytes(
        (kept.config.bundle / "manifest.json").read_bytes().replace(b'"fake"', b'"fork"')
    )
    with pytest.raises(Exception, match=r"the bundle in .* the state's is"):
        kept.take()
    assert not list(kept.out.parent.iterdir())


def test_where_no_file_can_be_written_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)
    monkeypatch.setattr(taking, "_taken", None)
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    for out, match in (
        (tmp_path / "no" / "such" / "f", "there is no such folder"),
        (tmp_path / "pipe" / "f", "there is no such folder"),
        (tmp_path, "is no file"),
        (tmp_path / "pipe", "is no file"),
    ):
        with pytest.raises(ConfigError, match=match):
            take_backup(kept.config, [], out, QUIET)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_roots_backup_leaves_no_file_of_its_own_in_the_services_folder(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.federation.kill_coordinator()
    service = 65_534
    for folder in kept.config.state_dir.parents:
        if folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(0o755)
    for path in (kept.config.state_dir, *kept.config.state_dir.rglob("*")):
        os.chown(path, service, service)
    kept.take()
    assert kept.out.stat().st_uid == 0
    assert {path.stat().st_uid for path in kept.config.state_dir.rglob("*")} == {service}
    target = tmp_path / "restored"
    target.mkdir()
    os.chown(target, service, service)
    restore_backup(kept.out, {STATE: target / "state"}, QUIET)
    assert {path.stat().st_uid for path in target.rglob("*")} == {service}


def test_a_server_whose_coordinator_has_not_run_yet(
    tmp_path: Path,
) -> None:
    """The authority is worth a backup from its first minute."""
    server = Server(tmp_path)
    server.admit("pi-1")
    layout, out = server.layout, tmp_path / "server.backup"
    number = Sequence(layout.home("registrar"), lambda: EPOCH_MS_MAX // 2).take()
    told(
        "server",
        "backup",
        "--config",
        str(layout.coordinator_toml),
        "--registrar",
        str(layout.registrar_toml),
        "--out",
        str(out),
    )
    key = (layout.home("registrar") / "authority" / "key.pem").read_bytes()
    members = layout.members.read_bytes()
    shutil.rmtree(layout.root)
    said = told("server", "restore", str(out), "--root", str(layout.root))
    assert "change it again;\n     once is enough" in said
    assert (layout.home("registrar") / "authority" / "key.pem").read_bytes() == key
    server.init()
    assert layout.members.read_bytes() == members
    # Its clock was ahead once: the registrar is believed only what goes on from there.
    assert Sequence(layout.home("registrar")).take() > number


def test_a_server_that_is_restored_elsewhere_leaves_the_one_that_it_was_alone(
    tmp_path: Path,
) -> None:
    """Also where the names of both have to be escaped in TOML."""
    server, elsewhere = Server(tmp_path / 'o"l\\d'), tmp_path / 'n"e\\w'
    out = tmp_path / "server.backup"
    configurations = "--config", str(server.layout.coordinator_toml), "--registrar"
    told("server", "backup", *configurations, str(server.layout.registrar_toml), "--out", str(out))
    told("server", "restore", str(out), "--root", str(elsewhere))
    for text in Path(elsewhere / "etc").rglob("*.*"):
        before, now = (
            toml_string(root)[1:-1] if text.suffix == ".toml" else str(root)
            for root in (server.layout.root, elsewhere)
        )
        was = (server.layout.root / text.relative_to(elsewhere)).read_text()
        assert text.read_text() == was.replace(before, now)
        assert before in was


def test_a_whole_server_is_not_restored_over_another_nor_from_half_a_backup(tmp_path: Path) -> None:
    server, kept = Server(tmp_path), Kept(tmp_path)
    kept.take()
    root = str(server.layout.root)
    assert "it has no registrar" in refused("server", "restore", str(kept.out), "--root", root)
    config = load_config(server.layout.registrar_toml, RegistrarConfig)
    registrar_toml = of_bytes("files/registrar.toml", server.layout.registrar_toml.read_bytes())
    others = [of_bytes("files/coordinator.toml", b"x"), registrar_toml]
    take_backup(kept.config, others, kept.out, QUIET, config)
    assert "is there already" in refused("server", "restore", str(kept.out), "--root", root)
    shutil.rmtree(server.layout.etc)
    assert "is not empty" in refused("server", "restore", str(kept.out), "--root", root)
    assert not server.layout.etc.exists()


# ---- what may be in a file that is called a backup ----


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    kept = Kept(tmp_path_factory.mktemp("good"))
    kept.federation.add("alpha", "beta", "gamma")
    kept.federation.run(kept.federation.finished)
    kept.take()
    kept.federation.kill_coordinator()
    return kept.out.read_bytes()


@pytest.fixture
def good(good_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "good.backup"
    path.write_bytes(good_bytes)
    return path


@pytest.mark.parametrize(
    ("content", "said", "hint"),
    [
        (b"", "it is no backup", "that `fedtide server backup` wrote"),
        (b"root:x:0:0:root:/root:/bin/sh\n" * 40, "it is no backup", "`fedtide server backup`"),
        (None, "says that .* are its list of contents", "copy it again, whole"),
    ],
)
def test_what_is_cut_off_is_told_from_what_is_no_backup(
    good: Path, content: bytes | None, said: str, hint: str
) -> None:
    good.write_bytes(good.read_bytes()[:600] if content is None else content)
    with pytest.raises(DamagedError, match=said) as caught:
        check_backup(good, QUIET)
    assert hint in (caught.value.hint or "")


def assert_refused(path: Path, match: str = "a") -> None:
    target = path.parent / "target"
    with pytest.raises(DamagedError, match=f"(?s)the backup .* is damaged: .*{match}"):
        check_backup(path, QUIET)
    with pytest.raises(DamagedError, match=match):
        restore_backup(path, {STATE: target / "s", FILES: target / "f"}, QUIET)
    assert not target.exists()


def test_every_flipped_or_missing_byte_is_noticed(good: Path) -> None:
    whole = good.read_bytes()
    for at in {*range(0, 2_000, 61), *range(0, len(whole), len(whole) // 60), len(whole) - 1500}:
        flipped = bytearray(whole)
        flipped[at] ^= 0x41
        try:
            with io.BytesIO(bytes(flipped)) as file:
                contents = read_contents(file, len(flipped))
                for _, copy in read_entries(file, contents):
                    copy(None, QUIET.moved)
        except DamagedError:
            continue
        pytest.fail(f"byte {at} may be anything")
    for length in (0, 1, 511, 512, 4_000, len(whole) - 1_024, len(whole) - 1):
        good.write_bytes(whole[:length])
        assert_refused(good)
    good.write_bytes(whole + b"\0" * 512)
    assert_refused(good, "expected")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "state/../../evil",
        "state//x",
        "state/.hidden",
        "./x",
        "state/",
        "state/a\nb",
        "state/a\0b",
        "",
        "x" * 100,
        "state\\x",
    ],
)
def test_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    assert not is_entry_name(name)
    path = tmp_path / "x.backup"
    written(path, [(name, b"evil")])
    assert_refused(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "names", [["state/a", "state/a"], ["state/a", "state/a/b"], ["state/a/b/c", "state/a"]]
)
def test_names_that_cannot_stand_beside_each_other(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "x.backup"
    written(path, [(name, b"") for name in names])
    assert_refused(path)


def contents_of(files: list[tuple[str, bytes]], **changes: object) -> Contents:
    entries = tuple(Entry(name, len(raw), sha256_hex(raw)) for name, raw in files)
    told = Contents(1, "0", 0, "f", "r", 0, "a" * 64, (), entries)
    return msgspec.structs.replace(told, **changes)


def written(path: Path, files: list[tuple[str, bytes]], **changes: object) -> Contents:
    contents = contents_of(files, **changes)
    raw = dict(files)
    with path.open("wb") as file:
        write_archive(file, contents, lambda e: io.BytesIO(raw[e.name]), QUIET.moved)
    return contents


Change = Callable[[tarfile.TarInfo], None]


def retyped(kind: bytes) -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, "/etc/passwd"

    return change


@pytest.mark.parametrize(
    "change",
    [
        retyped(tarfile.SYMTYPE),
        retyped(tarfile.LNKTYPE),
        retyped(tarfile.CHRTYPE),
        retyped(tarfile.FIFOTYPE),
        retyped(tarfile.DIRTYPE),
        retyped(tarfile.GNUTYPE_SPARSE),
        retyped(tarfile.GNUTYPE_LONGNAME),
        retyped(tarfile.XHDTYPE),
        lambda info: setattr(info, "size", 1 << 50),
        lambda info: setattr(info, "size", -1),
        lambda info: setattr(info, "name", "state/other"),
    ],
)
def test_a_member_that_is_no_plain_file(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "x.backup"
    contents = written(path, [("state/a", b"1")])
    raw = bytearray(path.read_bytes())
    info = tarfile.TarInfo("state/a")
    info.size = 1
    change(info)
    at = archive_bytes(len(msgspec.json.encode(contents)), ()) - 1_024
    raw[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)[:512]
    path.write_bytes(raw)
    assert_refused(path)


@pytest.mark.parametrize(
    "head",
    [
        b"{}",
        b"\xff\xfe",
        b"[" * 200_000,
        msgspec.json.encode(contents_of([])).replace(b'"format":1', b'"format":2'),
        msgspec.json.encode(contents_of([], entries=(Entry("state/a", 1 << 60, "a" * 64),))),
    ],
)
def test_contents_that_are_none(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "x.backup"
    info = tarfile.TarInfo(contents_name(head))
    info.size = len(head)
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + head + b"\0" * (-len(head) % 512 + 1_024))
    assert_refused(path)


def test_an_ordinary_or_compressed_tar_is_no_backup(tmp_path: Path) -> None:
    path = tmp_path / "x.backup"
    for mode in ("w", "w:gz", "w:xz"):
        with tarfile.open(path, mode) as file:
            file.add(__file__, "../evil")
        assert_refused(path)


def test_a_state_that_no_coordinator_can_go_on_with(good: Path, tmp_path: Path) -> None:
    """Well-formed, and yet: no database, junk as one, of a newer version, models missing."""
    with good.open("rb") as file:
        contents = read_contents(file, good.stat().st_size)
        files: dict[str, bytes] = {}
        for entry, copy in read_entries(file, contents):
            content = io.BytesIO()
            copy(content, QUIET.moved)
            files[entry.name] = content.getvalue()
    database = files["state/coordinator.db"]
    newer = database[:60] + (99).to_bytes(4, "big") + database[64:]
    model = f"state/blobs/{min(told_models(good, tmp_path))}"
    torn = database[:4096] + b"\x55" * 4096 + database[8192:]
    for number, (changed, match) in enumerate(
        [
            ({n: c for n, c in files.items() if n != "state/coordinator.db"}, "no database"),
            (files | {"state/coordinator.db": b""}, "empty"),
            (files | {"state/coordinator.db": b"junk" * 999}, "not a database"),
            (files | {"state/coordinator.db": newer}, "schema 99"),
            (files | {"state/coordinator.db": torn}, "malformed|damaged"),
            ({n: c for n, c in files.items() if not n.startswith("state/blobs")}, "is not in it"),
            ({n: c for n, c in files.items() if n != model}, "is not in it"),
        ]
    ):
        path = tmp_path / f"{number}.backup"
        written(path, list(changed.items()))
        target = tmp_path / f"target-{number}"
        with pytest.raises(StateError, match=match):
            restore_backup(path, {STATE: target}, QUIET)
        assert not target.exists()


def told_models(path: Path, folder: Path) -> set[str]:
    target = folder / "models"
    restore_backup(path, {STATE: target}, QUIET)
    store = Store(target, read_only=True)
    digests = {model.ref.digest for model in store.models()}
    store.close()
    return digests


def test_a_folder_that_is_not_empty_is_left_alone(good: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / STAGING_NAME / "half").mkdir(parents=True)
    restore_backup(good, {STATE: target}, QUIET)
    before = sorted(path.name for path in target.iterdir())
    with pytest.raises(ConfigError, match="is not empty: 'blobs' is in it"):
        restore_backup(good, {STATE: target}, QUIET)
    assert sorted(path.name for path in target.iterdir()) == before


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "SPARE_BYTES", 1 << 60)
    with pytest.raises(StateError, match="MB are needed") as caught:
        restore_backup(good, {STATE: tmp_path / "target"}, QUIET)
    assert caught.value.no_room
    assert not (tmp_path / "target").exists()
    with pytest.raises(ConfigError, match="there is no backup"):
        check_backup(tmp_path / "nothing", QUIET)
