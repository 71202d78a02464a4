"""Local data: each thing that can be wrong is said before anything is trained."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_client.trainers.batches import check_batch
from fedtide.dataset import Dataset, load_dataset
from fedtide.errors import BundleError, DataError
from fedtide.manifest import Array, Manifest, encode_manifest, parse_manifest
from simulator.faults.fake_learning import fake_bundle

MANIFEST = fake_bundle(8).manifest  # x: float32[2], y: int64, two classes
X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10, dtype=np.int64) % 2


def load(
    tmp_path: Path,
    arrays: dict[str, object],
    *,
    manifest: Manifest = MANIFEST,
) -> Dataset:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return load_dataset(path, manifest)


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
    "nothing": ({}, r"has no array 'x'\s+hint: numpy.savez"),
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
    "pickle": (
        {"x": np.array([{}] * 10, dtype=object), "y": Y},
        "cannot be read: array 'x' holds Python objects",
    ),
    "half held out": ({"x": X, "y": Y, "x_held_out": X}, "no array 'y_held_out'"),
    "bad held out": ({"x": X, "y": Y, "x_held_out": X, "y_held_out": Y + 5}, "'y_held_out'"),
}


TOKENS = msgspec.structs.replace(
    MANIFEST, inputs=Array((3,), "int64", below=12), labels=Array((2,), "int64"), ignored_label=-100
)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("x", (4, 2), 12, r"input 12 in 'x' of .*, at x\[4, 2\], .*: the model takes 0 to 11"),
        ("x", (0, 0), -1, r"input -1 in 'x' of .*, at x\[0, 0\]"),
        ("x", (1, 0), 2**62, rf"input {2**62} in 'x' of .*, at x\[1, 0\]"),
        ("x_held_out", (1, 1), -12, r"input -12 in 'x_held_out' of .*, at x_held_out\[1, 1\]"),
        ("y", (3, 1), 2, r"label 2 in 'y' of .*, at y\[3, 1\], .* 0 to 1, and -100 for none"),
        ("y", (2, 0), -99, r"label -99 in 'y' of .*, at y\[2, 0\]"),
    ],
)
def test_integers_out_of_range(
    tmp_path: Path, name: str, place: tuple[int, ...], value: int, message: str
) -> None:
    arrays = {
        "x": np.full((6, 3), 11),
        "y": np.full((6, 2), -100),
        "x_held_out": np.zeros((2, 3), np.int64),
        "y_held_out": np.ones((2, 2), np.int64),
    }
    load(tmp_path, dict(arrays), manifest=TOKENS)
    arrays[name][place] = value
    # A later one, and one that is ignored, must not be blamed.
    arrays["y"][5] = [-100, 77] if name == "y" else [-100, 1]
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, dict(arrays), manifest=TOKENS)
    assert "data.npz" in str(error.value)
    if name in ("x", "y"):
        with pytest.raises(DataError, match=f"{value} is out of range"):
            check_batch(TOKENS, arrays["x"], arrays["y"])


def test_labels_and_inputs_without_a_limit_are_taken(tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(
        TOKENS, inputs=Array((3,), "int64"), classes=None, ignored_label=None
    )
    far = {"x": np.full((6, 3), -7), "y": np.full((6, 2), 10**9)}
    assert load(tmp_path, dict(far), manifest=manifest).training.x[0, 0] == -7


def test_a_manifest_without_limits_has_the_bytes_that_it_always_had() -> None:
    raw = encode_manifest(MANIFEST)
    assert b"below" not in raw
    assert parse_manifest(raw) == MANIFEST
    raw = encode_manifest(TOKENS)
    assert parse_manifest(raw).inputs.below == 12
    with pytest.raises(BundleError, match="below"):
        parse_manifest(raw.replace(b'"below": 12', b'"below": 0'))
    odd = msgspec.structs.replace(MANIFEST, inputs=Array((2,), "float32", below=5))
    with pytest.raises(BundleError, match="for int64 only"):
        parse_manifest(encode_manifest(odd))
    odd = msgspec.structs.replace(TOKENS, labels=Array((2,), "int64", below=5))
    with pytest.raises(BundleError, match="labels have `classes`"):
        parse_manifest(encode_manifest(odd))


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_data(tmp_path: Path, name: str) -> None:
    arrays, message = BAD[name]
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, arrays)
    assert "data.npz" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"x,y\n1,2\n", b"\x80\x04N.", b"PK", b"PKxx 1,2\n", b"PK\x01\x02" + bytes(60)),
        *(b"PK\x03\x04", b"PK\x05\x06", b"PK\x03\x04" + bytes(60)),
    ],
)
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as error:
        load_dataset(path, MANIFEST)
    assert "pickle" not in str(error.value)
    assert "it is no .npz archive, or not all of one" in str(error.value)
    assert "numpy.savez(path, x=inputs, y=labels)" in str(error.value)


def test_a_missing_file_a_folder_and_a_single_array(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_dataset(tmp_path / "absent.npz", MANIFEST)
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path, MANIFEST)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"is no \.npz archive"):
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


def test_the_files_own_held_out_examples_win(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"x": X, "y": Y, "x_held_out": X[:3], "y_held_out": Y[:3]})
    assert dataset.held_out is not None
    assert (len(dataset.training.x), len(dataset.held_out.x)) == (10, 3)


def test_regression_has_no_classes(tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(
        MANIFEST, classes=None, loss="mse", labels=Array((1,), "float32")
    )
    dataset = load(tmp_path, {"x": X, "y": X[:, :1] * 100}, manifest=manifest)
    assert dataset.training.y.shape == (10, 1)


PIXELS = msgspec.structs.replace(MANIFEST, inputs=Array((1, 2, 2), "float32"))


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"x": X.astype(np.float64), "y": Y}, r"x\.astype\('float32'\)"),
        ({"x": X.astype(np.int64), "y": Y}, r"x\.astype\('float32'\)"),
        ({"x": X.astype(np.complex64), "y": Y}, "the model takes real numbers"),
        ({"x": X.astype("U8"), "y": Y}, "the model takes real numbers"),
        ({"x": X, "y": Y.astype(np.uint64)}, r"y\.astype\('int64'\)"),
        ({"x": X, "y": Y + 0.5}, "whole numbers; classes are numbered from 0"),
        ({"x": X, "y": np.array(["ant", "bee"] * 5)}, "whole numbers; classes are numbered from 0"),
        ({"x": X, "y": Y + 1}, "classes are numbered from 0"),
        ({"x": X * np.nan, "y": Y}, "leave such examples out"),
        ({"x": X, "y": Y[:5]}, r"x\[i\] and y\[i\] are one example"),
        ({"images": X, "y": Y}, r"numpy\.savez\(path, x=inputs, y=labels\)"),
        ({"x": X.reshape(4, 5), "y": Y}, "the first axis counts the examples"),
        ({"x": X, "y": Y[:, None]}, r"y\.reshape\(-1\)"),
    ],
)
def test_the_hint_keeps_the_data(tmp_path: Path, arrays: dict[str, object], hint: str) -> None:
    with pytest.raises(DataError, match=f"hint: .*{hint}"):
        load(tmp_path, arrays)


def test_a_flat_image_is_told_how_to_become_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.reshape\(-1, 1, 2, 2\)"):
        load(tmp_path, {"x": X.reshape(5, 4), "y": Y[:5]}, manifest=PIXELS)
    with pytest.raises(DataError, match="first axis"):
        load(tmp_path, {"x": np.float32(1), "y": Y}, manifest=PIXELS)
