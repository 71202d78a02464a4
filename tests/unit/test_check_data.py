"""`fedtide client check-data`, as a person meets it, on every kind of data."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtide import cli
from fedtide.bundle import sha256_hex
from fedtide.manifest import MANIFEST_NAME, encode_manifest
from tests.contract.local_data import KINDS, MANIFEST, examples


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """As much of one as is looked at."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(MANIFEST))
    return folder


def ask(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = cli.main(["client", "check-data", *map(str, words)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out + err


def flags(config: Any) -> list[object]:
    given = {
        "--data": config.path,
        "--labels": config.labels_path,
        "--query": config.query,
        "--function": config.function,
        "--classes": ",".join(config.classes or ()) or None,
    }
    return [word for name, value in given.items() if value is not None for word in (name, value)]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_from_flags_alone(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    kind = KINDS[name](tmp_path)
    kind.write(*examples(9))
    config = kind.config()
    code, out = ask(capsys, *flags(config))
    assert code == 0, out
    assert f"kind    {name}"[:8] in out
    assert "whether they fit a model tells --bundle DIR" in out
    code, out = ask(capsys, *flags(config), "--bundle", bundle, "--json")
    told = json.JSONDecoder().raw_decode(out)[0]
    if config.divisor is None:
        assert (code, told["refused"]) == (0, None)
        assert told["examples"]["training"] == 9
        assert told["examples"]["classes"] == {"0": 3, "1": 3, "2": 3}
        assert told["kind"] == name
    else:
        assert code == 4
        assert "data.divisor = 255" in told["refused"]["todo"]


def config_file(tmp_path: Path, data: str) -> Path:
    path = tmp_path / "client.toml"
    path.write_text(f'federation = "f"\ndevice = "d"\nstate_dir = "state"\n[data]\n{data}\n')
    return path


def test_a_configuration_and_what_is_wrong_with_its_data(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS["csv"](tmp_path)
    kind.write(*examples(50))
    toml = config_file(tmp_path, 'path = "d.csv"\nclasses = ["ant", "bee", "cat"]\n'
                       "held_out_fraction = 0.2\nexamples_max = 40")  # fmt: skip
    code, out = ask(capsys, "--config", toml, "--bundle", bundle)
    assert code == 0
    assert "the newest 40 of 50 examples are used" in out
    assert "ok       the data fit the model" in out
    csv = tmp_path / "d.csv"
    lines = csv.read_text().splitlines()
    lines[3:5] = ["1,2", lines[4].replace("ant", "eel")]
    csv.write_text("\n".join(lines) + "\n")
    code, out = ask(capsys, "--config", toml, "--bundle", bundle)
    assert code == 4
    assert "PROBLEM  line 4 of " in out
    assert "PROBLEM  line 5 of " in out
    assert "'eel' is no class" in out
    assert "REFUSED  2 examples are wrong" in out
    few = config_file(tmp_path, 'path = "few.npz"\nexamples_min = 5')
    np.savez(tmp_path / "few.npz", x=np.zeros((3, 1, 4, 4), np.float32), y=np.zeros(3, int))
    code, out = ask(capsys, "--config", few, "--bundle", bundle)
    assert code == 4
    assert "REFUSED  3 examples to train on, at least 5 are needed here" in out


def test_who_holds_out_all_of_few_examples_is_told_so(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = config_file(tmp_path, 'path = "d.npz"\nheld_out_fraction = 0.999999')
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 1, 4, 4), np.float32), y=np.zeros(2, int))
    code, out = ask(capsys, "--config", toml, "--bundle", bundle)
    assert (code, "REFUSED  0 examples to train on, at least 1" in out) == (4, True), out
    assert "2 are held out: lower data.held_out_fraction" in out


def test_the_bundle_that_the_device_has_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS["npz"](tmp_path).write(*examples(5))
    toml = config_file(tmp_path, 'path = "d.npz"')
    blobs = tmp_path / "state" / "blobs"
    blobs.mkdir(parents=True)
    raw = encode_manifest(MANIFEST)
    (blobs / sha256_hex(raw)).write_bytes(raw)
    code, out = ask(capsys, "--config", toml)
    assert code == 0, out
    assert f"bundle        {MANIFEST.name} {sha256_hex(raw)[:12]}" in out
    assert "training      5" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "give --config FILE or --data PATH"),
        (["--config", "x.toml", "--data", "d.npz"], 2, "--data and --config exclude"),
        (["--config", "absent.toml"], 2, "cannot read 'absent.toml'"),
        (["--data", "absent.npz"], 4, "REFUSED  there is no data file"),
        (["--data", "d.db"], 2, "a database needs both `data.path` and `data.query`"),
        (["--data", "x.npy"], 2, "give `data.labels_path`"),
        (["--data", "x.npy"], 2, "hint: --data is data.path, --labels data.labels_path"),
        (["--data", "."], 4, "'.' has no sub-folder that this user can see"),
        (["--query", "SELECT 1"], 2, "path"),
        (["--data", "d.npz", "--classes", "a,b"], 2, "`data.classes` has no effect"),
        (["--data", "d.npz", "--bundle", "absent"], 3, "no bundle in 'absent'"),
        (["--function", "absent.py"], 2, "is FILE.py:NAME or MODULE:NAME, not 'absent.py'"),
        (["--function", "absent.py:load"], 4, "REFUSED  there is no data file"),
    ],
)
def test_what_cannot_be_asked(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out = ask(capsys, *words)
    assert (got, message in out) == (code, True), out


def test_names_in_the_data_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.csv").write_text("a\x1b[31m,y\n1,\x1b]0;x\x07\n")
    _, out = ask(capsys, "--data", tmp_path / "d.csv")
    assert "\x1b" not in out


def test_a_long_list_of_columns_is_told_by_its_beginning_and_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ",".join(f"pixel{number}" for number in range(1784))
    (tmp_path / "d.csv").write_text(f"{names}\n{'0,' * 1783}1\n")
    _, out = ask(capsys, "--data", tmp_path / "d.csv")
    assert "pixel0, pixel1, pixel2, pixel3, pixel4, … (1,784)\n" in out
    _, out = ask(capsys, "--data", tmp_path / "d.csv", "--json")
    assert json.loads(out)["seen"]["columns"][-1] == "pixel1783"


def test_a_folder_of_images_without_classes_tells_its_sub_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS["images"](tmp_path)
    kind.write(*examples(120))
    code, out = ask(capsys, "--data", tmp_path / "images")
    assert code == 0
    assert "ant: 40, bee: 40, cat: 40\n" in out
    assert "4x4 L: 100, not opened: 20\n" in out
    line = 'classes = ["ant", "bee", "cat"]'
    assert f"in [data] of client.toml: {line}, in the order of the model's outputs" in out
    toml = config_file(tmp_path, 'path = "images"')
    code, out = ask(capsys, "--config", toml)
    assert (code, line in out) == (2, True), out
    toml = config_file(tmp_path, f'path = "images"\n{line}')
    assert ask(capsys, "--config", toml)[0] == 0


def test_without_pillow_the_hint_is_for_the_place_where_fedtide_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    (tmp_path / "images" / "ant").mkdir(parents=True)
    pipx = tmp_path / "pipx/venvs/fedtide"
    pipx.mkdir(parents=True)
    (pipx / "pipx_metadata.json").touch()
    for prefix, hint in (
        ("/opt/fedtide/versions/1.0-cp311-0", "fedtide server package --with images"),
        (str(pipx), f"PIPX_HOME={tmp_path}/pipx pipx inject fedtide pillow"),
        ("/usr", f"{sys.executable} -m pip install pillow"),
    ):
        monkeypatch.setattr(sys, "prefix", prefix)
        code, out = ask(capsys, "--data", tmp_path / "images")
        assert (code, hint in out) == (4, True), out


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("a,b,y", "has no examples"),
        ("a,b,y|1,2", "line 2 of .* has 2 fields"),
        ("a,b,y|1,x,0|1,NaN,0|1,2,0", "line 2 .*'x' is no number.*line 3 .*missing.*2 examples"),
        ("a,b,y|1,1e999,0", "'1e999' is not finite"),
        ("a;b;y|1;2;0", "no column of inputs"),
    ],
)
def test_a_csv_that_no_model_takes_is_refused_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, told: str
) -> None:
    (tmp_path / "d.csv").write_text(lines.replace("|", "\n") + "\n")
    code, out = ask(capsys, "--config", config_file(tmp_path, 'path = "d.csv"'))
    assert (code, bool(re.search(f"(?s){told}", out))) == (4, True), out


def test_before_columns_are_chosen_what_stands_in_one_refuses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.csv").write_text("when,a,y\n2026-11-22,1,0\n2026-11-23,2,1\n")
    code, out = ask(capsys, "--data", tmp_path / "d.csv")
    assert code == 0, out
    assert "when, a, y" in out
    assert "note     2 lines have an input that is missing or no number" in out
    assert "line 2 of" in out
    assert "column 'when': '2026-11-22' is no number; in [data] of client.toml" in out
    (tmp_path / "d.csv").write_text("when,a,y\n2026-11-22,1,0\n2026-11-23,2\n")
    code, out = ask(capsys, "--data", tmp_path / "d.csv")
    assert (code, "REFUSED  1 example is wrong" in out) == (4, True), out


def test_what_a_csv_may_have_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.csv").write_text(f"a,b,y\n1,,none\n3,4,{'ant' * 50}\n")
    code, out = ask(capsys, "--config", config_file(tmp_path, 'path="d.csv"\nmissing="skip"'))
    assert (code, f"none: 1, {'ant' * 20}…: 1\n" in out) == (0, True), out


def test_a_query_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = KINDS["sqlite"](tmp_path)
    kind.write(*examples(0))
    code, out = ask(capsys, *flags(kind.config()))
    assert (code, "has no examples" in out) == (4, True), out
