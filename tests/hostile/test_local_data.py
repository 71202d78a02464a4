"""Local data that are wrong in every way: a message with the place, and never more than that."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edge_client.data import Loaded, NotNowError, Problems, open_source
from edge_client.data.config import DataConfig
from edge_client.data.rows import FileRows
from fedtide.errors import DataError
from fedtide.manifest import Array
from simulator.faults.fake_learning import fake_bundle

MANIFEST = fake_bundle(8).manifest  # x: float32[2], y: int64, two classes
GRAY = msgspec.structs.replace(MANIFEST, inputs=Array((1, 4, 4), "float32"))


def load(manifest: Any = MANIFEST, problems: Problems | None = None, **config: Any) -> Loaded:
    return open_source(DataConfig(**config)).load(manifest, problems or Problems())


# ---- CSV ----


def csv(folder: Path, content: str | bytes, **config: Any) -> Loaded:
    path = folder / "d.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(path=path, **config)


GOOD = "a,b,y\n1,2,0\n3,4,1\n"
BAD_CSV: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "empty": ("", {}, "it is empty"),
    "only a header": ("a,b,y\n", {}, "has no examples"),
    "one line without end": ("a,b,y", {}, "the last line has no end yet"),
    "no end of the only row": ("a,b,y\n1,2,0", {}, r"no examples \(the last line has no end"),
    "text": (
        "a,b,y\n1,x,0\n",
        {},
        r"line 2 of .*d.csv', column 'b': 'x' is no number\s*hint: data.input_columns",
    ),
    "missing": ("a,b,y\n1,,0\n", {}, r"line 2 .* column 'b': a value is missing"),
    "not a number": ("a,b,y\n1,NaN,0\n", {}, "a value is missing"),
    "missing label": ("a,b,y\n1,2,\n", {}, "column 'y': a value is missing"),
    "infinite": ("a,b,y\n1,inf,0\n", {}, "'inf' is not finite"),
    "too large": ("a,b,y\n1,1e39,0\n", {}, "too large for float32"),
    "huge": (f"a,b,y\n1,{'9' * 5000},0\n", {}, "too large for float32"),
    "huge label": (f"a,b,y\n1,2,{'9' * 5000}\n", {}, "no whole number"),
    "wide label": (f"a,b,y\n1,2,{2**63}\n", {}, "no whole number of 64 bits"),
    "broken label": ("a,b,y\n1,2,1.5\n", {}, "'1.5' is no whole number"),
    "label out of range": ("a,b,y\n1,2,2\n", {}, "label 2 of line 2 .* is out of range"),
    "negative label": ("a,b,y\n1,2,-1\n", {}, "label -1"),
    "decimal comma": ("a;b;y\n1,5;2;0\n", {"delimiter": ";"}, "decimals follow a point"),
    "underscores": ("a,b,y\n1_0,2,0\n", {}, "'1_0' is no number"),
    "foreign digits": ("a,b,y\n١,2,0\n", {}, "is no number"),
    "hexadecimal": ("a,b,y\n0x1,2,0\n", {}, "is no number"),
    "ragged": ("a,b,y\n1,2,0\n1,2\n", {}, "line 3 .* has 2 fields, 3 are expected"),
    "wide": ("a,b,y\n1,2,0,7\n", {}, "has 4 fields"),
    "another delimiter": ("a;b;y\n1;2;0\n", {}, "no column of inputs .*, only: 'a;b;y'"),
    "latin-1": (b"a,b,y\n1,2,0\n\xe4,2,0\n", {}, "line 3 of .* is not UTF-8"),
    "utf-16": (GOOD.encode("utf-16"), {}, "line 1 of .* is not UTF-8"),
    "open quote": ('a,b,y\n1,2,0\n\n"1,2,0\n1,2,0\n', {}, "line 4 of .* cannot be read"),
    "long field": (f"a,b,y\n{'9' * 200_000},2,0\n", {}, "line 2 of .* larger than field limit"),
    "second line of a row": ('a,b,y\n1,"x\n",0\n', {}, "line 2 of "),
    "no header": ("1,2.5,0\n3,4,1\n", {}, "no names of columns.*\\s*hint: .*header = false"),
    "no header, chosen by number": ("1,2.5,0\n", {"label_columns": (3,)}, "no names of columns"),
    "no header, classes": ("1,2,no\n", {"classes": ("no", "yes")}, "no names of columns"),
    "zero bytes": (b"\0" * 5000 + b"\n", {}, "d.csv"),
    "junk": (bytes(range(256)) * 20, {}, "d.csv"),
    "no such column": (GOOD, {"label_columns": ("z",)}, "no column 'z'; it has: 'a', 'b', 'y'"),
    "no such number": (GOOD, {"label_columns": (9,)}, "no column 9, only 3"),
    "twice": ("a,a,y\n1,2,0\n", {"input_columns": ("a", "y")}, "more than one column 'a'"),
    "the answer": (GOOD, {"input_columns": ("a", "y")}, "both input and label"),
    "too few": (GOOD, {"input_columns": ("a",)}, "has 1 values in 1 columns"),
    "no class": (GOOD, {"classes": ("no", "yes")}, "column 'y': '0' is no class"),
    "classes": (GOOD, {"classes": ("a", "b", "c")}, "has 3 names, the model has 2 classes"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv(tmp_path: Path, name: str) -> None:
    content, config, message = BAD_CSV[name]
    with pytest.raises(DataError, match=message) as error:
        csv(tmp_path, content, **config)
    assert len(str(error.value)) < 600


def test_good_csv(tmp_path: Path) -> None:
    expected = np.array([[1, 2], [3, 4]], np.float32)
    for content, config in (
        (GOOD, {}),
        ("\ufeff" + GOOD, {}),
        (GOOD.replace("\n", "\r\n"), {}),
        (GOOD.replace("\n", "\r"), {}),
        (GOOD.replace("\n", "\n\n"), {}),
        (GOOD.replace(",", " ,  "), {}),
        (GOOD.replace(",", ";"), {"delimiter": ";"}),
        ("1,2,0\n3,4,1\n", {"header": False}),
        ("0,1,2\n1,2,0\n3,4,1\n", {"header": True}),
        ("0,1,2\n1,2,0\n3,4,1\n", {"input_columns": ("0", "1"), "label_columns": ("2",)}),
        ("0,1,y\n1,2,0\n3,4,1\n", {"header": True}),
        ("y,b,a\n0,2,1\n1,4,3\n", {"input_columns": ("a", 2), "label_columns": (1,)}),
        (GOOD + "5,6,7", {}),
        (GOOD + "5,,1\n,6,\n", {"missing": "skip"}),
        ('a,b,y\n1,"2",no\n3,4,"yes"\n', {"classes": ("no", "yes")}),
    ):
        loaded = csv(tmp_path, content, **config)
        np.testing.assert_array_equal(loaded.dataset.training.x[:], expected)
        np.testing.assert_array_equal(loaded.dataset.training.y[:], [0, 1])
        assert bool(loaded.notes) == (content.endswith("7") or "missing" in config)
    assert "no end yet" in csv(tmp_path, GOOD + "5,6,7").notes[0]
    assert "'7.5' is a number" in csv(tmp_path, "7.5,NA,0\n1,2,0\n").notes[0]
    skipped = csv(tmp_path, GOOD + "5,,1\n,6,\n", missing="skip").notes[0]
    assert skipped.startswith("2 examples are skipped")
    assert "line 4" in skipped


def test_the_first_problems_are_kept_with_their_places(tmp_path: Path) -> None:
    problems = Problems(2)
    path = tmp_path / "d.csv"
    path.write_text("a,b,y\n1,2,0\n1,x,0\n1,2,9\n1\n3,4,1\n")
    loaded = load(problems=problems, path=path)
    assert len(loaded.dataset.training.x) == 2
    assert problems.count == 3
    assert ["line 3" in str(problems.shown[0]), "line 4" in str(problems.shown[1])] == [True, True]


def test_a_line_without_end_takes_no_more_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.data.csv_file._LINE_CHARS_MAX", 100)
    with pytest.raises(DataError, match="longer than 100 characters"):
        csv(tmp_path, "a,b,y\n" + "1" * 200)


# ---- images ----


def image(path: Path, pixels: np.ndarray | None = None, **save: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8) if pixels is None else pixels).save(path, **save)
    return old(path)


def old(path: Path) -> Path:
    os.utime(path, (10**9, 10**9), follow_symlinks=False)
    return path


def images(folder: Path, **config: Any) -> Loaded:
    return load(GRAY, path=folder, classes=("ant", "bee"), **config)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    made = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        crc = struct.pack(">I", zlib.crc32(name + content))
        made += struct.pack(">I", len(content)) + name + content + crc
    return made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"junk" * 100, "cannot be decoded"),
        (bomb(4, 4)[:45], "cannot be decoded"),
        (bomb(100_000, 100_000), "100000x100000 pixels|decompression bomb"),
        (bomb(9000, 9000), "9000x9000 pixels, at most"),
        (bomb(8, 4), "has 8x4 pixels, the model expects 4x4"),
        (b"GIF89a" + bytes(100), "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "cannot be decoded"),
    ],
)
def test_bad_images(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ant" / "1.png"
    path.parent.mkdir()
    path.write_bytes(content)
    old(path)
    with pytest.raises(DataError, match=message) as error:
        images(tmp_path)
    assert "1.png" in str(error.value)


def test_another_format_behind_a_suffix_is_not_decoded(tmp_path: Path) -> None:
    image(tmp_path / "ant" / "1.png", format="GIF")
    with pytest.raises(DataError, match="cannot be decoded"):
        images(tmp_path)


def test_an_image_that_is_just_being_written_is_left_out_for_now(tmp_path: Path) -> None:
    image(tmp_path / "ant" / "1.png")
    (tmp_path / "ant" / "2.png").write_bytes(bomb(4, 4)[:45])
    loaded = images(tmp_path)
    assert len(loaded.dataset.training.x) == 1
    assert "just being written" in loaded.notes[0]


def test_colours_and_sizes_fit_or_are_made_to_fit(tmp_path: Path) -> None:
    image(tmp_path / "ant" / "1.png")
    for name, pixels, message in (
        ("colour.png", np.zeros((4, 4, 3), np.uint8), "mode RGB, the model expects L"),
        ("large.png", np.zeros((9, 7), np.uint8), "7x9 pixels, the model expects 4x4"),
        ("alpha.png", np.zeros((4, 4, 4), np.uint8), "mode RGBA"),
    ):
        path = image(tmp_path / "bee" / name, pixels)
        with pytest.raises(DataError, match=message) as error:
            images(tmp_path)
        assert 'data.fit = "convert"' in str(error.value)
        assert len(images(tmp_path, fit="convert").dataset.training.x) == 2
        path.unlink()
    deep = image(tmp_path / "bee" / "deep.png", np.full((4, 4), 60_000, np.uint16))
    for fit in ("exact", "convert"):
        with pytest.raises(DataError, match="I;16"):
            images(tmp_path, fit=fit)
    deep.unlink()
    image(tmp_path / "bee" / "one.jpg", np.full((4, 4), 255, np.uint8))
    x = images(tmp_path).dataset.training.x[:]
    assert (x.min(), x.max()) == (0, 1)


def test_links_and_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    there = image(tmp_path / "real" / "ant" / "1.png")
    (tmp_path / "real" / "ant" / "2.png").symlink_to(there)
    (tmp_path / "real" / "ant" / "notes.txt").write_text("x")
    (tmp_path / "real" / "ant" / "below").mkdir()
    (tmp_path / "real" / "ant" / ".hidden.png").write_text("x")
    (tmp_path / "real" / "bee").symlink_to("/")
    loaded = images(tmp_path / "real")
    assert len(loaded.dataset.training.x) == 1
    assert sorted(loaded.notes) == [
        "1 files are left out: links",
        "1 files are left out: not in a class's folder",
        "2 files are left out: no image by their names",
    ]


def test_more_images_than_anybody_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.data.images.FILES_MAX", 3)
    for number in range(4):
        assert len(images(tmp_path).dataset.training.x) == number if number else True
        image(tmp_path / "ant" / f"{number}.png")
    with pytest.raises(DataError, match="more than 3 images"):
        images(tmp_path)


def test_folders_of_no_class_none_and_another_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no examples"):
        images(tmp_path)
    image(tmp_path / "cow" / "1.png")
    with pytest.raises(DataError, match="sub-folder 'cow', which is no class"):
        images(tmp_path)
    (tmp_path / "cow").rename(tmp_path / "ant")
    with pytest.raises(DataError, match="images become float32"):
        load(path=tmp_path, classes=("ant", "bee"))
    with pytest.raises(DataError, match="no folder of images"):
        images(tmp_path / "absent")


# ---- SQLite ----


def database(folder: Path, *statements: str) -> Path:
    path = folder / "d.db"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE IF NOT EXISTS t (a, b, y)")
        for statement in statements:
            made.execute(statement)
        made.commit()
    return path


ONE = "INSERT INTO t VALUES (1, 2.5, 1)"
BAD_QUERIES = {
    "no select": ("DELETE FROM t", r"not authorized\s+hint: .* may only SELECT"),
    "update": ("UPDATE t SET a = 1", r"may only SELECT"),
    "two": ("SELECT * FROM t; DROP TABLE t", r"one statement.*\s+hint: data.query is one SELECT"),
    "empty": (" ; ", r"fails: incomplete input\s+hint: data.query is one SELECT"),
    "attach": ("ATTACH 'other.db' AS o", "may only SELECT"),
    "pragma": ("SELECT *, 1, 2 FROM pragma_table_info('t')", "not authorized|prohibited"),
    "nothing": ("SELECT", "fails"),
    "no table": ("SELECT * FROM u", "no such table: u"),
    "endless": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i, 0 FROM n",
        "takes longer than 300 ms",
    ),
    "one column": ("SELECT y FROM t", "no column of inputs"),
    "no rows": ("SELECT * FROM t WHERE a > 5", "no examples"),
    "NULL": ("SELECT a, NULL, y FROM t", "row 1 of the query, column 'NULL': a value is missing"),
    "text": ("SELECT a, 'x', y FROM t", "'x' is no number"),
    "text that is none": ("SELECT a, CAST(x'ff31' AS TEXT), y FROM t", "is no number"),
    "real label": ("SELECT a, b, 0.5 FROM t", "0.5 is no whole number"),
    "label": ("SELECT a, b, 5 FROM t", "label 5 of row 1"),
    "infinite": ("SELECT a, 9e999, y FROM t", "not finite"),
    "odd blob": ("SELECT x'010203', y FROM t", "3 bytes are no vector"),
    "short blob": ("SELECT x'00000000', y FROM t", "has 1 values in 1 columns"),
    "nan blob": ("SELECT x'0000000000007fc0' || x'', y FROM t", "column|finite"),
    "huge blob": ("SELECT zeroblob(100000000), y FROM t", "too big"),
    "long text": ("SELECT a, replace(hex(zeroblob(100000)), '00', 'ab'), y FROM t", "no number"),
}


@pytest.mark.parametrize("name", BAD_QUERIES)
def test_bad_queries(tmp_path: Path, name: str) -> None:
    query, message = BAD_QUERIES[name]
    path = database(tmp_path, ONE)
    before = path.read_bytes()
    with pytest.raises(DataError, match=message) as error:
        load(path=path, query=query, time_ms_max=300)
    assert len(str(error.value)) < 600
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["d.db"]


def test_good_queries(tmp_path: Path) -> None:
    path = database(tmp_path, ONE, "INSERT INTO t VALUES ('3', 4, 'no')")
    for query, config, expected in (
        ("SELECT a, b, y FROM t WHERE y = 1 -- no other", {}, [[1, 2.5]]),
        ("SELECT a, b, y FROM t WHERE y = 1;", {}, [[1, 2.5]]),
        ("SELECT a, b, y FROM t WHERE y = 1; -- the last; one", {}, [[1, 2.5]]),
        ("SELECT a, b, y FROM t WHERE y = 1 /* ; */ ; ; /* to\n-- 'do */\n", {}, [[1, 2.5]]),
        ("SELECT a, b, y FROM t WHERE y = 1 OR y = '; -- '", {}, [[1, 2.5]]),
        ('SELECT a, b, y AS "it\'s; --" FROM t WHERE y = 1 /* open', {}, [[1, 2.5]]),
        ("SELECT y, a, b FROM t WHERE y = 1", {"label_columns": ("y",)}, [[1, 2.5]]),
        ("SELECT * FROM t", {"classes": ("1", "no")}, [[1, 2.5], [3, 4]]),
        ("SELECT x'0000803f', b, y FROM t LIMIT 1", {}, [[1, 2.5]]),
    ):
        x = load(path=path, query=query, **config).dataset.training.x[:]
        np.testing.assert_array_equal(x, np.array(expected, np.float32))


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    for content in (b"junk" * 1000, b"SQLite format 3\0" + bytes(3000)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="fails"):
            load(path=path, query="SELECT * FROM t")


def test_a_damaged_schema_whose_message_is_no_text(tmp_path: Path) -> None:
    path = database(tmp_path, ONE, "PRAGMA writable_schema = ON",
                    "UPDATE sqlite_master SET sql = CAST(x'4352a0' AS TEXT)")  # fmt: skip
    with pytest.raises(DataError, match="fails"):
        load(path=path, query="SELECT * FROM t")


def test_a_locked_database_is_not_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.data.sqlite._BUSY_S", 0.05)
    path = database(tmp_path, ONE)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(NotNowError):
            load(path=path, query="SELECT * FROM t")
        other.execute("ROLLBACK")
    assert len(load(path=path, query="SELECT * FROM t").dataset.training.x) == 1


def test_a_database_that_is_written_meanwhile_is_read_as_of_one_moment(tmp_path: Path) -> None:
    path = database(tmp_path, "PRAGMA journal_mode=WAL", ONE)
    source = open_source(DataConfig(path=path, query="SELECT * FROM t"))
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(ONE)
        other.commit()
        before = source.stamp()
        other.execute(ONE)  # not committed
        assert len(source.load(MANIFEST, Problems()).dataset.training.x) == 2
        assert source.stamp() == before
        other.commit()
        assert source.stamp() != before
        assert len(source.load(MANIFEST, Problems()).dataset.training.x) == 3


def test_rows_are_counted_and_read_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, selects = database(tmp_path, "PRAGMA journal_mode=WAL", ONE), []

    def spy(action: int, *_: Any) -> int:
        if action == sqlite3.SQLITE_SELECT:
            selects.append(action)
            if len(selects) == 4:  # the first explains, two count
                with contextlib.closing(sqlite3.connect(path)) as other:
                    other.execute("DELETE FROM t")
                    other.commit()
        return sqlite3.SQLITE_OK

    monkeypatch.setattr("edge_client.data.sqlite._only_reading", spy)
    assert len(load(path=path, query="SELECT * FROM t").dataset.training.x) == 1
    assert len(selects) == 4


# ---- a function ----


def function(folder: Path, body: str, manifest: Any = MANIFEST, **config: Any) -> Loaded:
    (folder / "mine.py").write_text("import numpy as np\n\n\ndef load():\n    " + body + "\n")
    return load(manifest, function=folder / "mine.py:load", **config)


BAD_FUNCTIONS = {
    "raises": (
        "raise ValueError('no sensor')",
        r"failed: ValueError: no sensor\s+hint: correct it, or data.function",
    ),
    "exits": ("raise SystemExit(9)", r"ended its process \(exit code 9\)"),
    "leaves": (
        "__import__('os')._exit(0)",
        r"ended its process \(exit code 0\)\s+hint: it has to return",
    ),
    "crashes": (
        "__import__('os').kill(__import__('os').getpid(), 11)",
        r"\(signal 11\)\s+hint: call it by hand",
    ),
    "nothing": (
        "return None",
        r"it returns NoneType, not x and y\s+hint: it has to return x and y",
    ),
    "three": ("return 1, 2, 3", "it returns tuple, not x and y"),
    "objects": ("return np.array([{}]), np.zeros(1)", "an array of object"),
    "text": ("return np.array(['a']), np.zeros(1)", "an array of <U1"),
    "ragged": ("return [[1, 2], [3]], [0, 1]", "cannot be used: ValueError"),
    "scalars": ("return 1.0, 0", "dtype float64"),
    "labels": ("return np.zeros((3, 2), 'f4'), np.full(3, 9)", "label 9 in 'y'"),
    "interrupt": ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
    "syntax": ("return (", r"SyntaxError: .*\s+hint: correct it"),
}


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_bad_functions(tmp_path: Path, name: str) -> None:
    body, message = BAD_FUNCTIONS[name]
    with pytest.raises(DataError, match=message):
        function(tmp_path, body)


def test_the_lines_of_the_owners_own_code_go_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError):
        function(tmp_path, "print('reading'); return np.load('absent.npy')")
    assert "reading" in caplog.text
    assert "mine.py" in caplog.text
    assert "line 5, in load" in caplog.text
    with pytest.raises(DataError):
        function(tmp_path, "raise KeyboardInterrupt")
    assert "function_child" not in caplog.text


def test_a_function_that_never_ends_is_ended(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    for body in (
        "while True: pass",
        f"__import__('subprocess').run(['sh', '-c', 'echo $$ > {started}; sleep 60; :'])",
        "import sys\n    while True: print('x' * 100, file=sys.stderr)",
    ):
        with pytest.raises(
            DataError, match=r"does not end within 1,500 ms\s+hint: raise data.time_ms_max"
        ):
            function(tmp_path, body, time_ms_max=1500)
    state = Path(f"/proc/{started.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z", "it outlives its caller"


def test_what_a_function_prints_disturbs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    body = "print('o' * 10000); return np.ones((3, 2), 'f2'), np.array([True, False, True])"
    loaded = function(tmp_path, body)
    np.testing.assert_array_equal(loaded.dataset.training.y[:], [1, 0, 1])


def test_a_function_may_hold_examples_out_itself(tmp_path: Path) -> None:
    loaded = function(
        tmp_path,
        "from fedtide.dataset import Dataset, Examples\n"
        "    e = Examples(np.ones((3, 2), 'f4'), np.zeros(3, int))\n"
        "    return Dataset(e, Examples(e.x[:1], e.y[:1]))",
        held_out_fraction=0.9,
    )
    assert loaded.dataset.held_out is not None
    assert (len(loaded.dataset.training.x), len(loaded.dataset.held_out.x)) == (3, 1)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("absent.py:load", r"no data file .*\s+hint: correct \[data\] function"),
        ("mine.py:other", "has no function 'other'"),
        ("absent_module:load", "No module named 'absent_module'"),
    ],
)
def test_functions_that_are_not_there(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    source = open_source(DataConfig(function=tmp_path / target))

    def look() -> None:
        source.stamp()
        source.load(MANIFEST, Problems())

    with pytest.raises(DataError, match=message):
        look()


def test_a_function_of_an_installed_module(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it returns datetime"):
        load(function=tmp_path / "email.utils:localtime")


# ---- .npy ----


def npy(folder: Path, x: Any, y: Any, **config: Any) -> Loaded:
    for name, array in (("x", x), ("y", y)):
        path = folder / f"{name}.npy"
        path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
    return load(path=folder / "x.npy", labels_path=folder / "y.npy", **config)


X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (b"", Y, "cannot be read"),
        (b"junk" * 20, Y, "magic"),
        (b"\x93NUMPY\x01\x00" + b"\xff\xff" + bytes(100), Y, "cannot be read"),
        (X.astype(np.float64), Y, "dtype float64"),
        (X.astype(np.uint8), Y, "data.divisor = 255"),
        (np.asfortranarray(X), Y, "Fortran"),
        (X[:, :1], Y, r"shape \[6, 1\]"),
        (np.float32(1), Y, "shape"),
        (X[:5], Y, "5 x but 6 y"),
        (X[:0], Y[:0], "no examples"),
        (np.where(X == 7, np.nan, X), Y, r"dtype float64|not finite: x\[3, 1\]"),
        (np.where(X == 7, np.float32(np.inf), X), Y, r"not finite: x\[3, 1\]"),
        (X, Y * 3, r"label 3 in 'y' .* at y\[1\]"),
        (np.array([{}] * 6, dtype=object), Y, "Python objects"),
    ],
)
def test_bad_npy(tmp_path: Path, x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        npy(tmp_path, x, y)


def test_a_file_that_is_cut_or_changed_while_it_is_used_is_a_message(tmp_path: Path) -> None:
    """Mapped, it would end the process with SIGBUS."""
    x = npy(tmp_path, X, Y).dataset.training.x
    assert isinstance(x, FileRows)
    np.testing.assert_array_equal(x[:], X)
    np.testing.assert_array_equal(x.take(np.array([5, 0, 1, 1])), X[[5, 0, 1, 1]])
    with (tmp_path / "x.npy").open("r+b") as file:
        file.seek(150)
        file.write(b"!")
    os.utime(tmp_path / "x.npy", (10**9, 10**9))
    with pytest.raises(DataError, match="was changed while it was used"):
        x[:]
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(140)
    with pytest.raises(DataError, match=r"too early|was changed"):
        x[:]
    with pytest.raises(DataError, match="there are 12 bytes"):
        load(path=tmp_path / "x.npy", labels_path=tmp_path / "y.npy")


def test_a_file_that_is_replaced_is_used_as_it_was(tmp_path: Path) -> None:
    x = npy(tmp_path, X, Y).dataset.training.x
    np.save(tmp_path / "new.npy", X + 1)
    (tmp_path / "new.npy").rename(tmp_path / "x.npy")
    np.testing.assert_array_equal(x[:], X)
