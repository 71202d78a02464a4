"""`fedtide models export`: what it writes, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedtide import cli
from fedtide.safetensors import decode_safetensors
from tests.federation import ELEMENTS, Federation


def test_missing_folders_are_made_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = Federation(tmp_path)
    state, out = str(tmp_path / "coordinator"), tmp_path / "new" / "deep" / "model.safetensors"
    arguments = ["models", "export", "--state-dir", state, "--out"]
    assert cli.main([*arguments, str(out)]) == 0
    size = out.stat().st_size
    said = f"{out}: model 0, {size:,} bytes"
    assert capsys.readouterr().out == f"{said}, in the new folder {str(out.parent)!r}\n"
    np.testing.assert_array_equal(decode_safetensors(out.read_bytes()), federation.model(0))
    assert len(federation.model(0)) == ELEMENTS
    assert cli.main([*arguments, str(out)]) == 0
    assert capsys.readouterr().out == f"{said}\n"


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
