"""CIFAR-10 in its binary version: what a model sees, and files that are damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedtide.errors import ConfigError, DataError
from simulator.learning.datasets import TrainingData, open_data_set

EACH = 4
FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def images(count: int) -> NDArray[np.uint8]:
    """Noise, but the red of pixel (row, column) is 7 * row + column."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, 3, 32, 32), np.uint8)
    pixels[:, 0] = 7 * np.arange(32)[:, None] + np.arange(32)
    return pixels


def put(folder: Path) -> NDArray[np.uint8]:
    pixels = images(len(FILES) * EACH)
    labels = (np.arange(len(pixels)) % 10).astype(np.uint8)
    records = np.concatenate([labels[:, None], pixels.reshape(len(pixels), -1)], axis=1)
    (folder / "cifar-10-batches-bin").mkdir()
    for number, name in enumerate(FILES):
        content = records[number * EACH : (number + 1) * EACH].tobytes()
        (folder / "cifar-10-batches-bin" / name).write_bytes(content)
    return pixels


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    put(tmp_path)
    return open_data_set("cifar10", tmp_path)


def whitened(x: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray((x - x.mean()) / x.std())


def test_the_test_images_are_centre_crops(data: TrainingData, tmp_path: Path) -> None:
    pixels = images(len(FILES) * EACH)[-EACH:]
    assert data.test.x.dtype == np.float32
    assert data.test.x.shape == (EACH, 3, 24, 24)
    assert data.test.y.tolist() == [0, 1, 2, 3]
    for x, original in zip(data.test.x, pixels, strict=True):
        np.testing.assert_allclose(x, whitened(original[:, 4:28, 4:28]), atol=1e-5)


def test_examples_of_every_file(data: TrainingData) -> None:
    assert len(data) == 20
    assert data.labels is not None
    some = data.examples(np.array([19, 0, 7]))
    assert some.y.tolist() == data.labels[[19, 0, 7]].tolist() == [9, 0, 7]
    assert some.x.dtype == np.float32
    assert some.x.shape == (3, 3, 24, 24)
    assert data.examples(np.zeros(0, np.int64)).x.shape == (0, 3, 24, 24)


def test_augmentation_is_a_function_of_seed_and_index(data: TrainingData) -> None:
    one = data.examples(np.arange(20), seed=7)
    np.testing.assert_array_equal(data.examples(np.arange(20), seed=7).x, one.x)
    np.testing.assert_array_equal(data.examples(np.array([13, 2]), seed=7).x, one.x[[13, 2]])
    other = data.examples(np.arange(20), seed=8)
    assert not np.array_equal(other.x, one.x)
    np.testing.assert_array_equal(other.y, one.y)


def test_what_augmentation_does(data: TrainingData) -> None:
    """Over many seeds: every place of the crop, both directions, contrast of each channel."""
    pixels = images(1)[0]
    places, flips, factors = set(), set(), []
    for seed in range(200):
        x = data.examples(np.array([0]), seed).x[0].astype(np.float64)
        assert abs(x.mean()) < 1e-5
        assert abs(x.std() - 1) < 1e-5
        step = (x[0, 1, 0] - x[0, 0, 0]) / 7  # what one step of red has become
        flips.add(bool((x[0, 0, 1] - x[0, 0, 0]) * step < 0))
        found = [
            (top, left)
            for top in range(9)
            for left in range(9)
            for crop in [pixels[:, top : top + 24, left : left + 24].astype(np.float64)]
            for cut in [crop[:, :, ::-1] if (x[0, 0, 1] - x[0, 0, 0]) * step < 0 else crop]
            if np.corrcoef(cut[1].ravel(), x[1].ravel())[0, 1] > 0.999
        ]
        assert len(found) == 1
        places.update(found)
        factors.append(float(x[0].mean()))
    assert flips == {True, False}
    assert {top for top, _ in places} == {left for _, left in places} == set(range(9))
    # Contrast moves the channels' means against their deviations, else whitening undid it all.
    assert np.std(factors) > 0.05


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    put(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / name).unlink()
    with pytest.raises(DataError, match=name) as caught:
        open_data_set("cifar10", tmp_path)
    assert "datasets cifar10" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has 0 bytes, expected 3,073 for each image"),
        (bytes(3072), "has 3,072 bytes"),
        (bytes(3073) + b"\x0b" + bytes(3072), "the label 11 at 1, expected 0 to 9"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, said: str) -> None:
    put(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        open_data_set("cifar10", tmp_path)
    assert str(path) in str(caught.value)


def test_jpeg_images_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10_jpeg.npz").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"Pillow(.|\n)*pip install"):
        open_data_set("cifar10", tmp_path)
