"""Local data over time: which examples are used and held out, and data that just change."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_client.data import NotNowError
from edge_client.data.choice import Key, Places, is_held_out, key_of, keys_of
from edge_client.data.config import DataConfig
from edge_client.data.local_data import SETTLE_S, LocalData
from edge_client.data.rows import Column, LocalDataset
from fedtide.errors import DataError
from simulator.faults.fake_learning import fake_bundle

BUNDLE = fake_bundle(8)  # x: float32[2], y: int64, two classes


class Here:
    """One .npz, and a clock that pauses move."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.path = folder / "data.npz"
        self.now_s = 0.0
        self.on_pause: list[bytes] = []
        self.data = LocalData(DataConfig(self.path, **config), lambda: self.now_s)  # type: ignore[arg-type]

    def write(self, count: int, seed: int = 0, first: int = 0) -> None:
        x = np.random.default_rng(seed).random((first + count, 2), dtype=np.float32)[first:]
        np.savez(self.path, x=x, y=np.arange(first, first + count) % 2)

    def pause(self, seconds: float) -> None:
        self.now_s += seconds
        if self.on_pause:
            self.path.write_bytes(self.on_pause.pop(0))

    def now(self) -> LocalDataset:
        return self.data.current(BUNDLE, self.pause)


def rows(column: Column) -> set[bytes]:
    return {row.tobytes() for row in column[:]}


def sides(dataset: LocalDataset) -> tuple[set[bytes], set[bytes]]:
    assert dataset.held_out is not None
    return rows(dataset.training.x), rows(dataset.held_out.x)


def test_no_example_changes_sides_when_data_grow_shrink_or_change_places(tmp_path: Path) -> None:
    here = Here(tmp_path, held_out_fraction=0.25)
    ever_trained: set[bytes] = set()
    ever_judged: set[bytes] = set()
    for first, count in ((0, 40), (0, 80), (0, 81), (30, 200), (10, 100)):
        here.write(count, first=first)
        trained, judged = sides(here.now())
        ever_trained |= trained
        ever_judged |= judged
        assert len(trained) + len(judged) == count == here.data.examples_count + len(judged)
    assert not ever_trained & ever_judged
    assert 0.15 < len(ever_judged) / (len(ever_judged) + len(ever_trained)) < 0.35


def test_a_row_keeps_its_label_when_rows_are_put_in_order(tmp_path: Path) -> None:
    here = Here(tmp_path, held_out_fraction=0.5)
    x = np.random.default_rng(1).random((1000, 2), dtype=np.float32)
    y = (x[:, 0] > 0.5).astype(np.int64)
    np.savez(here.path, x=x, y=y)
    dataset = here.now()
    assert dataset.held_out is not None
    for part in (dataset.training, dataset.held_out):
        np.testing.assert_array_equal(np.greater(part.x[:][:, 0], 0.5), part.y[:])


@pytest.mark.parametrize("choice", ["newest", "sample"])
def test_at_most_so_many_are_used(tmp_path: Path, choice: str) -> None:
    here = Here(tmp_path, examples_max=10, choice=choice, held_out_fraction=0.3)
    seen = []
    for count in (8, 100, 101):
        here.write(count)
        trained, judged = sides(here.now())
        assert len(trained) + len(judged) == min(count, 10)
        seen.append(trained | judged)
    assert len(seen[1] & seen[2]) >= 9, "one came, at most one went"
    if choice == "newest":
        with np.load(here.path) as file:
            assert seen[2] == rows(file["x"][-10:])


def test_a_sample_does_not_depend_on_the_order() -> None:
    x = np.random.default_rng(3).random((50, 2), dtype=np.float32)
    kept = []
    for order in (x, x[::-1]):
        places, held = Places(7, "sample"), {}
        for row, key in zip(order, keys_of(order), strict=True):
            place = places.take(key)
            if place is not None:
                held[place] = row.tobytes()
        kept.append(set(held.values()))
    assert kept[0] == kept[1]
    assert len(kept[0]) == 7
    assert len(places) == 7
    assert places.seen == 50


def test_keys_are_those_of_every_machine() -> None:
    """Were they to change, held-out examples would be trained on after an update."""
    assert key_of(b"abc") == (14936952950850555179, 2380654890434721814)
    assert is_held_out(Key(2**62 - 1, 2**63), 0.25)
    assert not is_held_out(Key(2**62, 0), 0.25)


def test_data_are_read_once_until_they_change(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.write(5)
    first = here.now()
    assert here.now() is first
    here.write(6)
    assert len(here.now().training.x) == 6


def test_half_a_file_is_not_yet_and_the_last_good_data_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = Here(tmp_path)
    here.write(5)
    good = here.now()
    whole = here.path.read_bytes()
    here.path.write_bytes(whole[:100])
    assert here.now() is good
    assert "used as they were, for now" in caplog.text
    here.data.forget()
    with pytest.raises(NotNowError, match="just being written"):
        here.now()
    here.now_s += SETTLE_S
    with pytest.raises(DataError, match="cannot be read") as error:
        here.now()
    assert not isinstance(error.value, NotNowError)
    assert here.data.examples_count == 0
    here.path.write_bytes(whole)
    assert len(here.now().training.x) == 5


def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Here(tmp_path)
    here.write(5)
    whole = here.path.read_bytes()
    here.path.write_bytes(b"PK")
    stamps = iter(range(100))
    monkeypatch.setattr("edge_client.data.npz.file_stamp", lambda _path: next(stamps))
    here.on_pause = [b"PK\x03", whole]
    assert len(here.now().training.x) == 5


def test_data_that_shrink_or_vanish_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    here = Here(tmp_path)
    for count in (9, 12, 4):
        here.write(count)
        here.now()
    assert "the local data grew from 9 to 12 examples" in caplog.text
    assert "the local data shrank from 12 to 4 examples" in caplog.text
    here.path.unlink()
    with pytest.raises(DataError, match="there is no data file"):
        here.now()
    assert here.data.examples_count == 0


def test_too_few_examples_are_a_reason_that_may_be_told(tmp_path: Path) -> None:
    here = Here(tmp_path, examples_min=10)
    for _ in range(2):
        here.write(9)
        with pytest.raises(NotNowError, match="9 examples to train on, at least 10 are needed"):
            here.now()
        assert here.data.examples_count == 9
    here.write(10)
    assert len(here.now().training.x) == 10


def test_a_client_with_an_npz_starts_without_what_other_kinds_need() -> None:
    code = (
        "import sys, edge_client.command, edge_client.runner, edge_client.data.npz;"
        "print(sorted({'sqlite3', 'csv', 'PIL', 'subprocess'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['subprocess']")
