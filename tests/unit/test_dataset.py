"""Local data: each thing that can be wrong is said before anything is trained."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedtide.dataset import Dataset, load_dataset
from fedtide.errors import DataError
from fedtide.manifest import Array, Manifest
from tests.federation import fake_bundle

MANIFEST = fake_bundle(8).manifest  # x: float32[2], y: int64, two classes
X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10, dtype=np.int64) % 2


def load(
    tmp_path: Path,
    arrays: dict[str, object],
    *,
    manifest: Manifest = MANIFEST,
    fraction: float = 0.0,
) -> Dataset:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return load_dataset(path, manifest, fraction)


def test_good_data(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"x": X, "y": Y})
    np.testing.assert_array_equal(dataset.training.x, X)
    np.testing.assert_array_equal(dataset.training.y, Y)
    assert dataset.held_out is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.uint32])
def test_labels_of_another_width_are_the_same_labels(
    tmp_path: Path, dtype: type[np.generic]
) -> None:
    dataset = load(tmp_path, {"x": X, "y": Y.astype(dtype)})
    assert dataset.training.y.dtype == np.int64
    np.testing.assert_array_equal(dataset.training.y, Y)


BAD: dict[str, tuple[dict[str, object], str]] = {
    "no x": ({"y": Y}, "no array 'x', only: y"),
    "no y": ({"x": X}, "no array 'y', only: x"),
    "nothing": ({}, "only: none"),
    "shape": ({"x": X.reshape(4, 5), "y": Y}, r"shape \[4, 5\], the model expects \[examples, 2\]"),
    "flat": ({"x": X[:, 0], "y": Y}, r"shape \[10\]"),
    "scalar": ({"x": np.float32(1), "y": Y}, "shape"),
    "labels of two axes": ({"x": X, "y": Y[:, None]}, r"expects \[examples\]"),
    "dtype": ({"x": X.astype(np.float64), "y": Y}, "dtype float64, the model expects float32"),
    "float labels": ({"x": X, "y": Y.astype(np.float32)}, "dtype float32, the model expects int64"),
    "wide labels": ({"x": X, "y": Y.astype(np.uint64)}, "dtype uint64"),
    "text": ({"x": np.array(["a"] * 10), "y": Y}, "dtype <U1"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "no examples"),
    "counts": ({"x": X, "y": Y[:9]}, "10 x but 9 y"),
    "label": ({"x": X, "y": Y + 1}, "label 2 in 'y' .* classes 0 to 1"),
    "negative label": ({"x": X, "y": -Y}, "label -1 in 'y'"),
    "nan": ({"x": np.where(X == 7, np.nan, X).astype(np.float32), "y": Y}, "not finite"),
    "infinite": ({"x": X + np.float32(np.inf), "y": Y}, "not finite"),
    "pickle": ({"x": np.array([{}] * 10, dtype=object), "y": Y}, "cannot be read"),
    "half held out": ({"x": X, "y": Y, "x_held_out": X}, "no array 'y_held_out'"),
    "bad held out": ({"x": X, "y": Y, "x_held_out": X, "y_held_out": Y + 5}, "'y_held_out'"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_data(tmp_path: Path, name: str) -> None:
    arrays, message = BAD[name]
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, arrays)
    assert "data.npz" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x,y\n1,2\n", b"\x80\x04N."])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(path, MANIFEST)


def test_a_missing_file_a_folder_and_a_single_array(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_dataset(tmp_path / "absent.npz", MANIFEST)
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path, MANIFEST)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"is not an \.npz archive"):
        load_dataset(tmp_path / "x.npy", MANIFEST)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_a_message(tmp_path: Path, save: object) -> None:
    path = tmp_path / "data.npz"
    save(path, x=X, y=Y)  # type: ignore[operator]
    good, noise = path.read_bytes(), random.Random(5)
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(noise.randrange(1, 4)):
            damaged[noise.randrange(len(damaged))] = noise.randrange(256)
        path.write_bytes(damaged[: noise.choice([len(damaged), noise.randrange(len(damaged))])])
        try:
            load_dataset(path, MANIFEST)
        except DataError:
            continue


def test_the_last_part_is_held_out_and_always_the_same(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"x": X, "y": Y}, fraction=0.3)
    assert dataset.held_out is not None
    np.testing.assert_array_equal(dataset.training.x, X[:7])
    np.testing.assert_array_equal(dataset.held_out.x, X[7:])
    np.testing.assert_array_equal(dataset.held_out.y, Y[7:])


@pytest.mark.parametrize(("count", "fraction", "kept"), [(1, 0.9, 0), (2, 0.9, 1), (10, 0.04, 0)])
def test_something_is_always_left_to_train_on(
    tmp_path: Path, count: int, fraction: float, kept: int
) -> None:
    dataset = load(tmp_path, {"x": X[:count], "y": Y[:count]}, fraction=fraction)
    assert len(dataset.training.x) == count - kept
    assert (0 if dataset.held_out is None else len(dataset.held_out.x)) == kept


def test_the_files_own_held_out_examples_win(tmp_path: Path) -> None:
    dataset = load(
        tmp_path, {"x": X, "y": Y, "x_held_out": X[:3], "y_held_out": Y[:3]}, fraction=0.5
    )
    assert dataset.held_out is not None
    assert (len(dataset.training.x), len(dataset.held_out.x)) == (10, 3)


def test_regression_has_no_classes(tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(
        MANIFEST, classes=None, loss="mse", labels=Array((1,), "float32")
    )
    dataset = load(tmp_path, {"x": X, "y": X[:, :1] * 100}, manifest=manifest)
    assert dataset.training.y.shape == (10, 1)
