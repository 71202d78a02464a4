"""Data sets: what they give to a model, and that damaged files are said, never trained on."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedtide.errors import ConfigError, DataError
from simulator.learning.datasets import data_folder, open_data_set
from simulator.learning.datasets.files import read_compressed
from simulator.learning.datasets.shakespeare import (
    CHARACTERS,
    Sequences,
    ShakespeareWords,
    read_roles,
)

PARTS = {"train": 30, "t10k": 10}


def idx(array: NDArray[np.uint8]) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def put(path: Path, content: bytes, compressed: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, mtime=0))
    else:
        path.write_bytes(content)


def mnist_files(folder: Path, compressed: bool = True) -> None:
    for part, count in PARTS.items():
        pixels = (np.arange(count * 28 * 28) % 256).astype(np.uint8).reshape(count, 28, 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        put(folder / f"mnist/{part}-images-idx3-ubyte", idx(pixels), compressed)
        put(folder / f"mnist/{part}-labels-idx1-ubyte", idx(labels), compressed)


@pytest.mark.parametrize("compressed", [True, False])
def test_mnist(tmp_path: Path, compressed: bool) -> None:
    mnist_files(tmp_path, compressed)
    data = open_data_set("mnist", tmp_path)
    assert len(data) == 30
    assert data.groups is None
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    some = data.examples(np.array([11, 3]))
    assert some.x.shape == (2, 1, 28, 28)
    assert some.x.dtype == np.float32
    np.testing.assert_array_equal(some.y, [1, 3])
    pixel = (11 * 28 * 28 + 5) % 256
    assert some.x[0, 0, 0, 5] == np.float32(pixel) / np.float32(255)
    assert data.test.x.shape == (10, 1, 28, 28)
    assert data.test.x.max() == 1.0
    assert data.test.y.dtype == np.int64


def test_what_was_given_out_can_be_changed(tmp_path: Path) -> None:
    """A copy: whatever a trainer does to its batch, the next one is as it was."""
    mnist_files(tmp_path, compressed=False)
    data = open_data_set("mnist", tmp_path)
    some = data.examples(np.array([1]))
    some.x[:] = -1
    assert data.examples(np.array([1])).x.min() >= 0


def test_digits() -> None:
    data = open_data_set("digits")
    assert len(data) == 1437
    everything = data.examples(np.arange(1437))
    assert everything.x.shape == (1437, 1, 8, 8)
    assert everything.x.dtype == np.float32
    assert data.labels is not None
    np.testing.assert_array_equal(everything.y, data.labels)
    assert len(data.test.x) == 360
    # Some of the 1,797 images are equal to one another, but the split keeps all of them.
    pooled = np.concatenate([everything.y, data.test.y])
    assert np.bincount(pooled).sum() == 1797
    again = open_data_set("digits")
    np.testing.assert_array_equal(again.test.x, data.test.x)


def test_an_unknown_name_is_answered_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'emnist'(.|\n)*digits, mnist, shakespeare"):
        open_data_set("emnist")


def test_missing_files_are_answered_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_data_set("mnist", tmp_path)
    assert f"{tmp_path}/mnist/train-images-idx3-ubyte" in str(caught.value)
    command = f"python -m simulator.learning.datasets mnist --data-dir {tmp_path} --download"
    assert command in str(caught.value)


def test_where_data_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDTIDE_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("FEDTIDE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "fedtide" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "fedtide" / "data"


GOOD = idx(np.zeros((30, 28, 28), np.uint8))
LABELS = idx(np.zeros(30, np.uint8))
IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"

DAMAGE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": (
        IMAGES_FILE,
        lambda: b"",
        "begins with nothing and has 0 bytes, expected 00 00 08 03",
    ),
    "magic": (IMAGES_FILE, lambda: b"\x89PNG" + GOOD[4:], "begins with 89 50 4e 47"),
    "labels for images": (IMAGES_FILE, lambda: LABELS, "begins with 00 00 08 01"),
    "short header": (IMAGES_FILE, lambda: GOOD[:10], "begins with 00 00 08 03 and has 10 bytes"),
    "short": (IMAGES_FILE, lambda: GOOD[:-5], r"takes 23,520 bytes, there are 23,515"),
    "long": (IMAGES_FILE, lambda: GOOD + b"x", r"takes 23,520 bytes, there are 23,521"),
    "huge": (
        IMAGES_FILE,
        lambda: GOOD[:4] + struct.pack(">3I", 2**32 - 1, 28, 28),
        r"takes 3,367,254,359,280 bytes",
    ),
    "no images": (IMAGES_FILE, lambda: idx(np.zeros((0, 28, 28), np.uint8)), r"\[0, 28, 28\]"),
    "another side": (IMAGES_FILE, lambda: idx(np.zeros((30, 32, 32), np.uint8)), r"\[30, 32, 32\]"),
    "fewer labels": (
        LABELS_FILE,
        lambda: idx(np.zeros(29, np.uint8)),
        "has 30 images, train-labels-idx1-ubyte has 29 labels",
    ),
    "label 11": (
        LABELS_FILE,
        lambda: LABELS[:-2] + b"\x0b\x00",
        "the label 11 at 28, expected 0 to 9",
    ),
}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("case", sorted(DAMAGE))
def test_damaged_mnist(tmp_path: Path, case: str, compressed: bool) -> None:
    mnist_files(tmp_path, compressed)
    name, content, said = DAMAGE[case]
    put(tmp_path / "mnist" / name, content(), compressed)
    with pytest.raises(DataError, match=said) as caught:
        open_data_set("mnist", tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("cut", [0, 5, 30, -9, -1])
def test_damaged_gzip(tmp_path: Path, cut: int) -> None:
    mnist_files(tmp_path)
    path = tmp_path / "mnist" / f"{IMAGES_FILE}.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=IMAGES_FILE):
        open_data_set("mnist", tmp_path)


def test_a_flipped_bit_in_gzip(tmp_path: Path) -> None:
    mnist_files(tmp_path)
    path = tmp_path / "mnist" / f"{IMAGES_FILE}.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.*incorrect data check"):
        open_data_set("mnist", tmp_path)


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    mnist_files(tmp_path)
    (tmp_path / "mnist" / IMAGES_FILE).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        open_data_set("mnist", tmp_path)


ROLES = [
    {"play": "p", "role": "ONE LINE", "lines": ["Nobody hears me."]},
    {"play": "p", "role": "A", "lines": ["To be", "or not", "to be: that is", "the", "question."]},
    {"play": "p", "role": "B", "lines": ["Words, words, words." * 9, "Caf\u00e9 \0 \U0001f600"]},
]


def plays(folder: Path, content: bytes | None = None) -> Path:
    if content is None:
        content = b"".join(json.dumps(role).encode() + b"\n" for role in ROLES)
    put(folder / "shakespeare_by_role.jsonl", content)
    return folder


def text(tokens: NDArray[np.generic]) -> str:
    marks = {0: "", 1: "?", 2: "<", 3: ">", -100: "_"}
    return "".join(marks.get(int(t)) or CHARACTERS[int(t) - 4] for t in tokens if t != 0)


def test_shakespeare_by_lines(tmp_path: Path) -> None:
    data = open_data_set("shakespeare", plays(tmp_path))
    assert len(CHARACTERS) + 4 == 90
    assert data.labels is None
    assert data.groups is not None
    # Four lines of A, and one of B with 180 characters and two marks, 181 to predict.
    assert data.groups.tolist() == [0, 0, 0, 0, 1, 1, 1]
    some = data.examples(np.arange(len(data)))
    assert some.x.dtype == some.y.dtype == np.int64
    assert some.x.shape == some.y.shape == (7, 80)
    assert text(some.x[2]) == "<to be: that is"
    assert text(some.y[2]).rstrip("_") == "to be: that is>"
    assert ((some.x == 0) == (some.y == -100)).all()
    long = ROLES[2]["lines"][0]
    assert "".join(text(x) for x in some.x[4:]) == f"<{long}"
    assert "".join(text(y) for y in some.y[4:]).rstrip("_") == f"{long}>"
    np.testing.assert_array_equal(data.examples(np.array([5])).x[0], some.x[5])
    assert [text(x) for x in data.test.x] == ["<question.", "<Caf? ? ?"]


@pytest.mark.parametrize(("lines", "test_lines"), [(2, 1), (5, 1), (6, 2), (7, 2), (10, 2)])
def test_the_last_fifth_of_a_role_is_for_the_test(
    tmp_path: Path, lines: int, test_lines: int
) -> None:
    spoken = [f"line {number}" for number in range(lines)]
    role = json.dumps({"play": "p", "role": "A", "lines": spoken}).encode() + b"\n"
    split = read_roles(plays(tmp_path, role))
    assert split.training == [spoken[:-test_lines]]
    assert split.test == [spoken[-test_lines:]]


def test_shakespeare_by_sequences(tmp_path: Path) -> None:
    data = open_data_set("shakespeare_sequences", plays(tmp_path))
    assert data.groups is not None
    assert data.groups.tolist() == [0, 1, 1, 1]
    some = data.examples(np.array([0]))
    assert text(some.y[0]).rstrip("_") == "To be\nor not\nto be: that is\nthe>"


def test_shakespeare_by_words(tmp_path: Path) -> None:
    data = open_data_set("shakespeare_words", plays(tmp_path))
    assert isinstance(data, ShakespeareWords)
    words = ["", *data.vocabulary]
    said = ["to", "be", "or", "not", "to", "be", ":", "that", "is", "the"]
    assert words[1:4] == ["words", ",", "."]  # 27 times, 18 times, 9 times
    some = data.examples(np.array([0, 1]))
    assert [words[t] for t in some.x[0]] == ["", *said[:-1]]
    assert [words[t] for t in some.y[0]] == said
    assert some.x[1].tolist() == [0, *some.y[1, :9]]
    assert data.groups is not None
    assert data.groups[:2].tolist() == [0, 1]
    assert data.test.y[0].tolist()[:3] == [0, data.vocabulary["."], -100]  # "question" is another


def test_word_sequences_that_end_with_a_window() -> None:
    """Eleven tokens are ten to predict: one window, and the next sequence stays apart."""
    windows = Sequences(np.arange(1, 34, dtype=np.uint16), [11, 1, 21], 10)
    assert windows.sequence.tolist() == [0, 2, 2]
    some = windows.examples(np.arange(3))
    assert some.x.tolist() == [[*range(1, 11)], [*range(13, 23)], [*range(23, 33)]]
    assert some.y.tolist() == [[*range(2, 12)], [*range(14, 24)], [*range(24, 34)]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no role with two lines"),
        (b"garbage\n", r"line 1: JSON is malformed.*expected \{"),
        (b'{"play": "p", "role": "r", "lines": ["a", "b"]}\n{"play": "p"', "line 2: "),
        (b'{"play": "p", "role": "r", "lines": ["a", 5]}', r"line 1: Expected `str`, got `int`"),
        (b'{"play": "p", "role": "r", "lines": []}', "line 1: .*length >= 1"),
        (b'{"play": "p", "role": "r"}', "line 1: .*missing required field `lines`"),
        (b'{"play": "p", "role": "r", "lines": ["a", "\xff"]}', "line 1: "),
        (b'{"play": "p", "role": "r", "lines": ["a"]}', "no role with two lines"),
        (b'{"play": "p", "role": "r", "lines": ["a", "b"]}\n\n{}', "line 2: "),
    ],
)
def test_damaged_plays(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        open_data_set("shakespeare", plays(tmp_path, content))
    assert "shakespeare_by_role.jsonl.gz" in str(caught.value)


def test_a_small_file_that_unpacks_to_much(tmp_path: Path) -> None:
    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(DataError, match="holds more than 1,000 bytes"):
        read_compressed(path, 1000)
    assert len(read_compressed(path, 1 << 20)) == 1 << 20


def test_bytes_after_the_end_of_gzip(tmp_path: Path) -> None:
    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(b"one") + b"two")
    with pytest.raises(DataError, match="3 bytes follow its end"):
        read_compressed(path, 1000)
