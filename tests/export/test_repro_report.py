"""`fedtide repro fedavg --report`: it draws, so it runs where matplotlib is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from repro.records import write_record
from tests.unit.test_repro import ROOT, cell, fedavg, made_up


def test_a_report_has_no_place_outside_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedavg(tmp_path, "--report", "--docs", str(tmp_path)) == 2
    assert "copy of fedtide's repository" in capsys.readouterr().err


def test_a_report_is_the_same_twice(tmp_path: Path) -> None:
    best = cell("cnn-e5-b10", "iid")
    record = made_up(best.name, {0.0681: 30, 0.1: 21}, best.experiment)
    write_record(tmp_path, record)
    shutil.copy(ROOT / "docs" / "fedavg-paper.md", tmp_path)
    texts = []
    for _ in range(2):
        assert fedavg(tmp_path, "--report", "--docs", str(tmp_path)) == 0
        files = [*sorted(tmp_path.rglob("*.svg")), tmp_path / "fedavg-paper.md"]
        texts.append([file.read_bytes() for file in files])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3  # tables 1 and 2 share this run
