"""CIFAR-10 from JPEG copies. It stands here because Pillow is in this environment only."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedtide.errors import DataError
from simulator.learning.datasets import open_data_set


def jpeg(shade: int, side: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = np.full((side, side, 3), shade, np.uint8)
    pixels[: side // 2] = 255 - shade
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def arrays(count: int = 6) -> dict[str, NDArray[np.generic]]:
    found: dict[str, NDArray[np.generic]] = {}
    for part in ("train", "test"):
        files = [jpeg(10 * number) for number in range(count)]
        found[f"{part}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        found[f"{part}_offsets"] = np.cumsum([0, *map(len, files)]).astype(np.int64)
        found[f"{part}_labels"] = np.arange(count, dtype=np.uint8)
    return found


def put(folder: Path, changed: dict[str, NDArray[np.generic]] | None = None) -> Path:
    np.savez(folder / "cifar10_jpeg.npz", **{**arrays(), **(changed or {})})  # type: ignore[arg-type]
    return folder


def test_jpeg_copies(tmp_path: Path) -> None:
    data = open_data_set("cifar10", put(tmp_path))
    assert len(data) == 6
    assert "LOSSY" in data.about
    some = data.examples(np.array([4, 1]), seed=3)
    assert some.x.shape == (2, 3, 24, 24)
    assert some.y.tolist() == [4, 1]
    np.testing.assert_array_equal(data.examples(np.array([1]), seed=3).x[0], some.x[1])
    # Light above, dark below, in all colours.
    light, dark = data.test.x[1, :, 0], data.test.x[1, :, -1]
    assert float(light.min()) > 0.9
    assert float(dark.max()) < -0.9


BAD: dict[str, tuple[dict[str, NDArray[np.generic]], str]] = {
    "a label": ({"train_labels": np.full(6, 11, np.uint8)}, "the label 11 at 0"),
    "labels' type": ({"train_labels": np.zeros(6)}, r"'train_labels', uint8 .* there is float64"),
    "fewer labels": ({"test_labels": np.zeros(5, np.uint8)}, "test_offsets must go up"),
    "offsets down": ({"train_offsets": np.array([0, 9, 5, 20, 30, 40, 50])}, "must go up"),
    "none": ({"test_offsets": np.zeros(1, np.int64), "test_labels": np.zeros(0, np.uint8)}, "must"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_damaged_archives(tmp_path: Path, case: str) -> None:
    changed, said = BAD[case]
    with pytest.raises(DataError, match=said):
        open_data_set("cifar10", put(tmp_path, changed))


@pytest.mark.parametrize(
    "content",
    [b"\0" * 500, jpeg(5)[:400], jpeg(5, side=64), b"GIF89a" + bytes(100)],
    ids=["zeros", "cut", "another size", "another format"],
)
def test_damaged_images(tmp_path: Path, content: bytes) -> None:
    changed: dict[str, NDArray[np.generic]] = {
        "train_jpeg": np.frombuffer(jpeg(9) + content, np.uint8),
        "train_offsets": np.cumsum([0, len(jpeg(9)), len(content)]),
        "train_labels": np.zeros(2, np.uint8),
    }
    data = open_data_set("cifar10", put(tmp_path, changed))
    data.examples(np.array([0]))
    with pytest.raises(DataError, match="image 1 of train is no JPEG of 32x32 pixels"):
        data.examples(np.array([1]))


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "cifar10_jpeg.npz").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"cifar10_jpeg\.npz"):
        open_data_set("cifar10", tmp_path)
