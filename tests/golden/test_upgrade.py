"""States that earlier versions really wrote, in the middle of a round, go on with today's code.

`make_state` wrote them: a database as SQL, and beside it every other file of coordinator and
devices. One device has answered, one has its update in the outbox, one is training.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.earlier import earlier_path
from coordinator.recompute import recompute
from coordinator.schema import EARLIER, SCHEMA_VERSION
from coordinator.store import Store
from fedtide.bundle import open_bundle
from fedtide.errors import StateError
from fedtide.messages import Update
from tests import federation as of_tests
from tests.federation import Federation
from tests.golden.make_state import ELEMENTS, ROUNDS

HERE = Path(__file__).parent


def unpacked(version: int, folder: Path) -> dict[str, str]:
    """The folders as that version left them; the files of the bundle."""
    told = json.loads((HERE / f"state_{version}.json").read_text())
    for name, packed in told["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zlib.decompress(base64.b64decode(packed)))
    with closing(sqlite3.connect(folder / "coordinator" / "coordinator.db")) as database:
        database.executescript((HERE / f"state_{version}.sql").read_text())
    bundle: dict[str, str] = told["bundle"]
    return bundle


def opened(version: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    contents = unpacked(version, folder)
    bundle = open_bundle(contents["manifest.json"].encode(), lambda name: contents[name].encode())
    monkeypatch.setattr(of_tests, "ELEMENTS", ELEMENTS)
    monkeypatch.setattr(of_tests, "fake_bundle", lambda local: bundle)
    return Federation(folder, local=0, plan=None, **ROUNDS)


@pytest.mark.parametrize("version", sorted(EARLIER))
def test_a_round_that_an_earlier_version_opened_is_completed(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = opened(version, tmp_path, monkeypatch)
    store = federation.store
    run_id = store.fact("run_id")
    assert store.load_state().round_id == 2
    owed: list[Update] = []
    federation.add("alpha", "beta", "gamma")
    for name, device in federation.devices.items():
        device.runner.held = name != "gamma"  # the others have nothing to do in this round
        owed += device.session._state.durable.outbox
    assert [update.round_id for update in owed] == [2], "the device's state was read, too"
    federation.run(lambda: store.load_state().model_version == 2)
    assert owed[0] in store.updates(2)
    assert len(store.updates(2)) == 3
    for device in federation.devices.values():
        device.runner.held = False
        device.runner.finish()
    federation.run(federation.finished)
    assert store.fact("run_id") == run_id
    assert [model.version for model in store.models()] == [0, 1, 2, 3]
    for model in store.models()[1:]:
        assert recompute(store, model) == model.ref.digest
        assert len(store.parts(model.round_id)) == 3
    assert [(kind, outcome) for _, kind, outcome, _ in store.closed_rounds(0)] == [
        *[("train", "done")] * 3,
        ("evaluate", "done"),
    ]


@pytest.mark.parametrize("version", sorted(EARLIER))
def test_the_state_before_is_kept_as_another_run(version: int, tmp_path: Path) -> None:
    unpacked(version, tmp_path)
    folder = tmp_path / "coordinator"
    store = Store(folder)
    run_id, state = store.fact("run_id"), store.fact("round_state")
    store.close()
    kept = earlier_path(folder, version)
    assert kept.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(kept)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (version,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        facts = dict(database.execute("SELECT name, value FROM facts"))
    assert facts["run_id"] != run_id
    assert json.loads(facts["round_state"])["round_id"] == json.loads(state or "")["round_id"]
    assert not list(folder.glob(".coordinator*"))
    kept.unlink()
    Store(folder).close()
    assert not kept.exists(), "the second time nothing changes"


def test_a_state_from_the_future_is_refused_and_not_touched(tmp_path: Path) -> None:
    unpacked(max(EARLIER), tmp_path)
    folder = tmp_path / "coordinator"
    Store(folder).close()
    with closing(sqlite3.connect(folder / "coordinator.db")) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    told = f"has schema {SCHEMA_VERSION + 1}, expected {SCHEMA_VERSION}"
    with pytest.raises(StateError, match=told):
        Store(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_disk_without_room_for_the_copy_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked(max(EARLIER), tmp_path)
    folder = tmp_path / "coordinator"

    def full(_self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StateError, match="No space left"):
            Store(folder)
    with closing(sqlite3.connect(folder / "coordinator.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (max(EARLIER),)
    assert not list(folder.glob(".coordinator*"))
    Store(folder).close()


def test_every_version_that_can_be_brought_up_to_date_is_tried() -> None:
    assert set(range(2, SCHEMA_VERSION)) == EARLIER, "run tests.golden.make_state of each"
