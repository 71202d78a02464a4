"""Every kind of local data gives the same examples on the same sides, and tells changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_client.data import Loaded, Problems, collector, open_source
from edge_client.data.rows import Column, FileRows, LocalDataset, in_parts
from fedtide.errors import DataError
from tests.contract.local_data import KINDS, MANIFEST, SHAPE, Kind, as_model, examples


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return KINDS[request.param](tmp_path)


def load(kind: Kind, **more: object) -> Loaded:
    return open_source(kind.config(**more)).load(MANIFEST, Problems())


def rows(column: Column) -> list[bytes]:
    return [row.tobytes() for part in in_parts(column) for row in part]


def pairs(dataset: LocalDataset) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for part in filter(None, dataset):
        assert part.x.dtype == np.float32
        assert part.x.shape == (len(part.x), *SHAPE)
        assert part.y.dtype == np.int64
        found |= dict(zip(rows(part.x), rows(part.y), strict=True))
    return found


def expected(count: int) -> dict[bytes, bytes]:
    x, y = examples(count)
    return dict(zip(rows(as_model(x)), rows(y), strict=True))


def test_the_same_examples_with_their_labels(kind: Kind) -> None:
    kind.write(*examples(20))
    assert pairs(load(kind).dataset) == expected(20)
    assert load(kind).dataset.held_out is None


def test_the_same_sides_whatever_comes_and_goes(kind: Kind) -> None:
    seen: list[set[bytes]] = []
    for count in (40, 60):
        kind.write(*examples(count))
        dataset = load(kind, held_out_fraction=0.25).dataset
        assert pairs(dataset) == expected(count)
        assert dataset.held_out is not None
        seen += [set(rows(dataset.training.x)), set(rows(dataset.held_out.x))]
        x = as_model(examples(count)[0])
        from edge_client.data.choice import is_held_out, keys_of

        sides = [is_held_out(key, 0.25) for key in keys_of(x)]
        assert set(rows(x[np.array(sides)])) == seen[-1], "not as every other kind"
    assert not (seen[0] | seen[2]) & (seen[1] | seen[3])


@pytest.mark.parametrize("choice", ["newest", "sample"])
def test_no_more_than_are_wanted(kind: Kind, choice: str) -> None:
    kind.write(*examples(30))
    loaded = load(kind, examples_max=7, choice=choice, held_out_fraction=0.3)
    found = pairs(loaded.dataset)
    assert len(found) == 7
    assert found.items() <= expected(30).items()
    if choice == "newest":
        assert found.items() == expected(30).items() - expected(23).items()


def test_it_is_seen_that_data_change(kind: Kind) -> None:
    kind.write(*examples(5))
    source = open_source(kind.config())
    before = source.stamp()
    assert source.stamp() == before
    assert len(source.load(MANIFEST, Problems()).dataset.training.x) == 5
    assert source.stamp() == before, "reading changes nothing"
    kind.write(*examples(6))
    assert source.stamp() != before
    assert len(source.load(MANIFEST, Problems()).dataset.training.x) == 6


def test_data_that_are_not_there(kind: Kind) -> None:
    kind.write(*examples(5))
    source = open_source(kind.config())
    kind.vanish()
    for look in (source.stamp, lambda: source.load(MANIFEST, Problems())):
        with pytest.raises(DataError):
            look()


def test_what_can_be_seen_without_a_model_is_json(kind: Kind) -> None:
    kind.write(*examples(5))
    told = json.dumps(open_source(kind.config()).describe(Problems()))
    assert "5" in told or '"ant": 2' in told


def test_too_many_for_memory_are_refused_before_there_is_room_for_them(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind.write(*examples(50))
    monkeypatch.setattr(collector, "available_bytes", lambda: 1000)
    monkeypatch.setattr("fedtide.dataset.available_bytes", lambda: 1000)
    if type(kind).__name__ == "NpyBytes":
        dataset = load(kind, held_out_fraction=0.2).dataset
        assert isinstance(dataset.training.x, FileRows), "on the disk, whatever its size"
        return
    with pytest.raises(DataError, match="memory"):
        load(kind)


def test_a_wrong_label_is_named_with_its_place(kind: Kind) -> None:
    x, y = examples(9)
    kind.write(x, y)
    if type(kind).__name__ in ("Csv", "Images", "Sqlite"):
        config = kind.config()
        fewer = type(config)(
            **{
                **{f: getattr(config, f) for f in config.__struct_fields__},
                "classes": ("ant", "dog", "cat"),
            }
        )
        with pytest.raises(DataError, match="'bee'"):
            open_source(fewer).load(MANIFEST, Problems())
        return
    y[4] = 7
    kind.write(x, y)
    with pytest.raises(DataError, match=r"label 7 in 'y' .* at y\[4\]"):
        load(kind)
