"""`fedtide models export`: what it writes, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedtide import cli
from fedtide.safetensors import decode_safetensors
from simulator.faults.fake_learning import ELEMENTS
from tests.federation import Federation


def test_a_model_is_written_where_it_is_said_and_no_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = Federation(tmp_path)
    state, out = str(tmp_path / "coordinator"), tmp_path / "new" / "model.safetensors"
    arguments = ["models", "export", "--state-dir", state, "--out"]
    assert cli.main([*arguments, str(out)]) == 2
    assert "there is no such folder\n\nhint: make it first" in capsys.readouterr().err
    assert not out.parent.exists()
    out.parent.mkdir()
    assert cli.main([*arguments, str(out)]) == 0
    size = out.stat().st_size
    said = f"{out}: model 0, {size:,} bytes"
    assert capsys.readouterr().out == f"{said}\n"
    np.testing.assert_array_equal(decode_safetensors(out.read_bytes()), federation.model(0))
    assert len(federation.model(0)) == ELEMENTS


@pytest.mark.parametrize(
    "place", ["file/model.safetensors", "file/deep/model.safetensors", "model.txt", "d.safetensors"]
)
def test_a_place_that_cannot_be_written_is_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    Federation(tmp_path)
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "d.safetensors").mkdir()
    out, state = str(tmp_path / place), str(tmp_path / "coordinator")
    assert cli.main(["models", "export", "--state-dir", state, "--out", out]) in (2, 7)
    assert "fedtide: error: " in capsys.readouterr().err
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["lost", "bytes"])
@pytest.mark.parametrize("action", ["list", "verify", "export"])
def test_damaged_blobs_are_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, damage: str
) -> None:
    Federation(tmp_path)
    state = tmp_path / "coordinator"
    for path in [path for path in (state / "blobs").rglob("*") if path.is_file()]:
        path.unlink() if damage == "lost" else path.write_bytes(b"x")
    out = ["--out", str(tmp_path / "m.onnx")] if action == "export" else []
    assert cli.main(["models", action, "--state-dir", str(state), *out]) == 7
    said = capsys.readouterr().err
    assert "fedtide: error: " in said
    if action == "verify":
        assert "model 0 is not what its stored updates make: see its line above" in said
        assert "restore the state folder from a backup" in said
