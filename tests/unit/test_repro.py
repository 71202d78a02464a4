"""`fedtide repro fedavg`: rows, runs that go on, results, the document, and bad input."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

import repro.command
import repro.experiment
import repro.figure_one
import repro.report
import repro.reporting
import repro.running
import repro.standing
from coordinator.cohort import select_cohort
from fedtide import cli
from fedtide.bundle import Bundle, open_bundle_dir, sha256_hex
from fedtide.errors import ConfigError
from fedtide.manifest import MANIFEST_NAME, File, encode_manifest
from fedtide.measures import Measure, Metrics
from fedtide.safetensors import encode_safetensors, read_initial_model
from fedtide.vectors import Vector
from repro.experiment import Experiment, run
from repro.figure_one import Figure, Side, another_initial_model, make_figure
from repro.records import Record, Run, collect, merged, read_record, write_record
from repro.report import blocks, plot_names, rendered
from repro.reporting import read_figure, read_over_mqtt, saved
from repro.rows import ROWS, Row, Search
from repro.setting import open_setting
from repro.standing import our_factor, paper_factor, standing
from repro.trials import Label, folder_name, read_course
from repro.view import Progress
from simulator.learning import models
from simulator.learning.models import Version
from tests import bundles

ROOT = Path(__file__).parents[2]
NAME = "digits-iid"


def experiment() -> Experiment:
    return Experiment(
        model=str(bundles.build("tiny_cnn")),
        data="digits",
        partition="iid",
        devices=10,
        fraction=0.3,
        epochs=1,
        batch_size=10,
        target=0.999,
        rounds_max=8,
        learning_rate=0.1,
    )


def row() -> Row:
    return Row(
        "2", "digits", "iid", NAME, "digits", experiment(), Search(6), 6, 0.999, "digits"
    )  # fmt: skip


@pytest.fixture
def one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (repro.command, repro.report, repro.reporting, repro.standing):
        monkeypatch.setattr(module, "ROWS", (row(),))
    monkeypatch.setattr(models, "CHECKPOINT_S", 0.0)


def fedavg(out: Path, *arguments: str) -> int:
    return cli.main(["repro", "fedavg", "--out", str(out), "--workers", "1", *arguments])


def digests(out: Path, rate: str = "lr0.1") -> list[str]:
    course = read_course(out / NAME / rate)
    assert course is not None
    return [version.digest for version in course.versions]


# --- rows


def test_the_rows_are_the_papers() -> None:
    assert len({(row.table, row.line, row.column, row.target) for row in ROWS}) == len(ROWS)
    by_name: dict[str, Experiment] = {}
    for one in ROWS:
        known = by_name.setdefault(one.name, one.experiment)
        known = replace(known, learning_rate=one.experiment.learning_rate)
        assert known == one.experiment, f"two settings are called {one.name}"
        assert one.target <= one.experiment.target
    names = set(by_name)
    assert len(names) == len({msgspec.json.encode(e) for e in by_name.values()})
    assert {"cnn-iid-e5-b10", "cnn-shards-e1-b10", "2nn-iid-c0.1", "2nn-iid-c1"} <= names
    found = {(one.line, one.column): one for one in ROWS if one.table == "2"}
    cell = found["cnn-e20-b10", "non-iid"]
    assert cell.paper_rounds == 173
    assert paper_factor(cell) == pytest.approx(483 / 173)
    roles = found["lstm-e5-b10", "non-iid"]
    assert paper_factor(roles) == pytest.approx(95.3, abs=0.1)
    assert {one.table for one in ROWS if one.remembered} == {"4"}


# --- runs


@pytest.mark.usefixtures("one_row")
def test_a_search_ends_with_results_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedavg(tmp_path, "--row", "digits", "--rounds-max", "2") == 0
    record = read_record(tmp_path, NAME)
    assert record is not None
    assert record == collect(tmp_path, row())
    assert {run.last_round for run in record.runs} == {2}
    assert len(record.runs) >= 3
    run = next(run for run in record.runs if run.experiment.learning_rate == 0.1)
    assert run.digest == digests(tmp_path)[-1]
    assert [number for number, _ in run.curve] == [0, 1, 2]
    said = capsys.readouterr().out
    assert f"{NAME}, learning rate 0.1" in said
    assert "> 2 (" in said.splitlines()[-2]
    assert said.splitlines()[-1].startswith("data: the demo's digits")


@pytest.mark.usefixtures("one_row")
def test_a_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    one = ("--row", NAME, "--learning-rate", "0.1")
    assert fedavg(whole, *one) == 0
    assert len(digests(whole)) == 9

    def interrupted(_self: Progress, version: Version) -> None:
        if version.version == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "version", interrupted)
        assert fedavg(parts, *one) == 130
    assert len(digests(parts)) < 5
    assert fedavg(parts, *one, "--rounds-max", "5") == 0
    assert len(digests(parts)) == 6
    capsys.readouterr()
    assert fedavg(parts, *one, "--workers", "2") == 0
    assert "goes on after round 5" in capsys.readouterr().out
    assert digests(parts) == digests(whole)
    assert fedavg(parts, *one) == 0, "it has ended: nothing is done"


def test_a_run_draws_no_cohort_of_what_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def drawing(*arguments: Any) -> tuple[str, ...]:
        drawn.append(arguments[-1])
        return select_cohort(*arguments)

    monkeypatch.setattr(repro.experiment, "select_cohort", drawing)
    learner = open_setting(experiment(), None).learner
    for limit, rounds in ((3, [1, 2, 3]), (2, []), (5, [4, 5]), (99, [6, 7, 8]), (99, [])):
        drawn.clear()
        ended = run(experiment(), tmp_path, learner, 1, rounds_max=limit).ended
        assert drawn == rounds
    assert ended == "rounds_max"


@pytest.mark.usefixtures("one_row")
def test_results_that_came_with_the_repository_are_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--row", NAME, "--learning-rate", "0.1", "--rounds-max", "2")
    assert fedavg(tmp_path, *one) == 0
    record = read_record(tmp_path, NAME)
    assert record is not None
    for digest, said in ((record.runs[0].digest, "the same bits as"), ("0", "OTHER BITS THAN")):
        write_record(tmp_path, Record(NAME, (replace(record.runs[0], digest=digest),)))
        shutil.rmtree(tmp_path / NAME)
        capsys.readouterr()
        assert fedavg(tmp_path, *one) == 0
        assert f"{NAME}: {said} {NAME}.json has" in capsys.readouterr().out
        again = read_record(tmp_path, NAME)
        assert again is not None
        untimed = replace(again.runs[0], training_s=record.runs[0].training_s)
        assert (untimed,) == record.runs


def test_where_a_run_ends_does_not_depend_on_when_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = open_setting(experiment(), None).learner
    curve = [v.metrics for v in run(experiment(), tmp_path / "all", learner, 1).versions]
    there = [metrics.accuracy or 0.0 for metrics in curve if metrics is not None]
    wanted = replace(experiment(), target=max(there[:4]))
    last = there.index(wanted.target) + 1
    assert 1 < last < 8
    results = []
    for pause_s in (0.0, 1e9):
        monkeypatch.setattr(models, "CHECKPOINT_S", pause_s)
        results.append(run(wanted, tmp_path / f"{pause_s}", learner, 1))
    ends = {(result.ended, result.versions[-1].digest) for result in results}
    assert ends == {("target", results[0].versions[last].digest)}


def test_near_the_target_every_version_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = open_setting(experiment(), None).learner
    seldom = replace(experiment(), evaluate_every=3, target=0.9999)
    far = run(seldom, tmp_path / "far", learner, 1).versions
    assert [v.version for v in far if v.metrics is not None] == [0, 3, 6]
    assert [v.digest for v in far] == [
        v.digest for v in run(experiment(), tmp_path / "all", learner, 1).versions
    ]
    monkeypatch.setattr(repro.experiment, "MARGIN", 0.9999)
    near = run(seldom, tmp_path / "near", learner, 1).versions
    assert [v.version for v in near if v.metrics is not None] == list(range(9))


@pytest.mark.usefixtures("one_row")
def test_a_run_that_went_further_is_compared_where_the_record_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--row", NAME, "--learning-rate", "0.1", "--rounds-max")
    assert fedavg(tmp_path, *one, "2") == 0
    shutil.rmtree(tmp_path / NAME)
    capsys.readouterr()
    assert fedavg(tmp_path, *one, "1") == 0
    assert "bits" not in capsys.readouterr().out
    assert fedavg(tmp_path, *one, "3") == 0
    assert f"{NAME}: the same bits as {NAME}.json has" in capsys.readouterr().out


@pytest.mark.usefixtures("one_row")
def test_an_interruption_costs_the_round_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "CHECKPOINT_S", 1e9)

    def interrupted(_self: Progress, version: Version) -> None:
        if version.version == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "version", interrupted)
    assert fedavg(tmp_path, "--row", NAME, "--learning-rate", "0.1") == 130
    assert len(digests(tmp_path)) in (3, 4)


KILLED = """
import sys
from tests.unit import test_repro
import repro.command, repro.report, repro.reporting, repro.standing, repro.view
from simulator.learning import models
for module in (repro.command, repro.report, repro.reporting, repro.standing):
    module.ROWS = (test_repro.row(),)
models.CHECKPOINT_S = 0.0
repro.view.LINES_S = 0.0
sys.exit(test_repro.fedavg(test_repro.Path(sys.argv[1]), "--row", test_repro.NAME,
    "--learning-rate", "0.1", "--workers", "2"))
"""


@pytest.mark.usefixtures("one_row")
def test_kill_9_costs_no_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fedavg(whole, "--row", NAME, "--learning-rate", "0.1") == 0
    command = [sys.executable, "-c", KILLED, str(killed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "round 4" in line:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(digests(killed)) in range(4, 8)
    assert fedavg(killed, "--row", NAME, "--learning-rate", "0.1") == 0
    assert digests(killed) == digests(whole)


@pytest.mark.usefixtures("one_row")
def test_another_seed_has_a_folder_of_its_own(tmp_path: Path) -> None:
    one = ("--row", NAME, "--learning-rate", "0.1", "--rounds-max", "1")
    assert fedavg(tmp_path, *one) == 0
    assert fedavg(tmp_path, *one, "--seed", "5") == 0
    assert digests(tmp_path)[1] != digests(tmp_path, "lr0.1-seed5")[1]
    record = read_record(tmp_path, NAME)
    assert record is not None
    assert [run.key for run in record.runs] == [(0, 0.1), (5, 0.1)]


@pytest.mark.usefixtures("one_row")
def test_a_row_with_another_initial_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(bundles.build("tiny_cnn"), folder)
    bundle = open_bundle_dir(folder)
    other = another_initial_model(bundle, 3)
    raw = encode_safetensors(other)
    path = bundle.manifest.initial_model
    (folder / path).write_bytes(raw)
    files = bundle.manifest.files | {path: File(len(raw), sha256_hex(raw))}
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(replace(bundle.manifest, files=files)))
    one = ("--row", NAME, "--learning-rate", "0.1", "--rounds-max", "1")
    assert fedavg(tmp_path / "other-runs", *one, "--bundle", str(folder)) == 0
    assert digests(tmp_path / "other-runs")[0] == sha256_hex(other.tobytes())
    assert fedavg(tmp_path / "runs", *one) == 0
    capsys.readouterr()
    assert fedavg(tmp_path / "runs", *one[:-1], "2", "--bundle", str(folder)) == 7
    assert "began from another initial model" in capsys.readouterr().err


@pytest.mark.usefixtures("one_row")
def test_how_a_run_ended_is_read_from_earlier_files_too(tmp_path: Path) -> None:
    assert fedavg(tmp_path, "--row", NAME, "--learning-rate", "1000") == 0
    folder = tmp_path / NAME / "lr1000"
    ending = json.loads((folder / "result.json").read_bytes())
    assert set(ending) == {"experiment", "ended"}
    course = read_course(folder)
    assert course is not None
    assert "not finite" in (course.diverged or "")
    more = {**ending, "rounds": None, "versions": [{"version": 0, "digest": "0"}]}
    (folder / "result.json").write_text(json.dumps(more))
    (folder / "experiment.json").unlink()
    again = read_course(folder)
    assert again is not None
    assert (again.experiment, again.diverged) == (course.experiment, course.diverged)


@pytest.mark.usefixtures("one_row")
def test_a_rate_that_diverges_is_a_result(tmp_path: Path) -> None:
    assert fedavg(tmp_path, "--row", NAME, "--learning-rate", "1000") == 0
    record = read_record(tmp_path, NAME)
    assert record is not None
    assert "not finite" in (record.runs[0].diverged or "")
    assert standing(row(), {NAME: record}) is not None


# --- bad input


def test_a_row_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["repro", "fedavg", "--table", "2", "--row", "cnn-e7"]) == 2
    said = capsys.readouterr().err
    assert "there is no row 'cnn-e7' in table 2" in said
    assert "cnn-e5-b10" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--table", "2", "--workers", "0"], "--workers is 0, expected 1 or more"),
        (["--table", "2", "--rounds-max", "0"], "--rounds-max is 0"),
        (["--table", "2", "--seed", "-1"], "--seed is -1"),
        (["--table", "2", "--learning-rate", "fast"], "--learning-rate is 'fast'"),
        (["--table", "2", "--learning-rate", "nan"], "--learning-rate is 'nan'"),
        ([], "nothing was asked for"),
        (["--table", "3", "--partition", "non-iid"], "table 3 has no rows of partition 'non-iid'"),
        (["--figure", "1", "--row", "2nn-c0.1"], "--figure goes without --table, --row"),
        (["--figure", "1", "--rounds-max", "5"], "--figure goes without --learning-rate"),
        (["--figure", "1", "--learning-rate", "1"], "--figure goes without --learning-rate"),
        (["--list", "--report"], "two commands"),
        (["--figure", "1", "--over-mqtt"], "--figure goes without --table, --row"),
    ],
)
def test_flags_that_are_wrong(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["repro", "fedavg", *flags]) == 2
    assert said in capsys.readouterr().err


def test_data_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    for what in (["--row", "2nn-c0.1"], ["--figure", "1"]):
        assert cli.main(["repro", "fedavg", *what, *out]) == 4
        said = capsys.readouterr().err
        assert "train-images-idx3-ubyte" in said
        assert "--download" in said


@pytest.mark.usefixtures("one_row")
@pytest.mark.parametrize("file", ["journal.jsonl", "experiment.json", "model"])
def test_a_damaged_run(tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("--row", NAME, "--learning-rate", "0.1")
    assert fedavg(tmp_path, *one, "--rounds-max", "2") == 0
    folder = tmp_path / NAME / "lr0.1"
    path = folder / file if file != "model" else next(folder.glob("model-*.f32"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert fedavg(tmp_path, *one) == 7
    said = capsys.readouterr().err
    assert str(folder) in said
    assert "to begin anew" in said


@pytest.mark.usefixtures("one_row")
def test_the_folder_of_another_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--row", NAME, "--learning-rate", "0.1")
    assert fedavg(tmp_path, *one, "--rounds-max", "1") == 0
    path = tmp_path / NAME / "lr0.1" / "experiment.json"
    other = replace(experiment(), epochs=7)
    path.write_bytes(msgspec.json.encode(Label(other)))
    assert fedavg(tmp_path, *one) == 7
    assert "epochs is 7 there, 1 now" in capsys.readouterr().err
    path.write_bytes(msgspec.json.encode(Label(experiment(), "other digits")))
    assert fedavg(tmp_path, *one) == 7
    assert "the data is 'other digits' there" in capsys.readouterr().err
    path.write_bytes(msgspec.json.encode(Label(replace(experiment(), rounds_max=3, target=0.5))))
    assert fedavg(tmp_path, *one, "--rounds-max", "2") == 0, "that is the same, run less far"
    path.unlink()
    (path.parent / "result.json").unlink()
    assert fedavg(tmp_path, *one, "--rounds-max", "3") == 0, "a journal alone is the row's own"
    assert len(digests(tmp_path)) == 4


@pytest.mark.usefixtures("one_row")
def test_a_run_that_began_from_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--row", NAME, "--learning-rate", "0.1")
    assert fedavg(tmp_path, *one, "--rounds-max", "1") == 0
    path = tmp_path / NAME / "lr0.1" / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["digest"] = "0" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert fedavg(tmp_path, *one) == 7
    assert "began from another initial model" in capsys.readouterr().err


@pytest.mark.usefixtures("one_row")
def test_results_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert fedavg(file, "--row", NAME, "--learning-rate", "0.1", "--rounds-max", "1") == 7
    assert "cannot use the folder" in capsys.readouterr().err


@pytest.mark.usefixtures("one_row")
def test_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.open

    def full(path: str | Path, *words: int, **more: int) -> int:
        if Path(path).name == ".journal.jsonl.new":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *words, **more)

    one = ("--row", NAME, "--learning-rate", "0.1")
    assert fedavg(tmp_path, *one, "--rounds-max", "2") == 0
    before = digests(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        assert fedavg(tmp_path, *one) == 7
    said = capsys.readouterr().err
    assert "free space on this disk, then start again" in said
    assert digests(tmp_path) == before
    assert fedavg(tmp_path, *one) == 0
    assert digests(tmp_path)[:3] == before


# --- results and the document


def made_up(name: str, rounds: dict[float, int], base: Experiment) -> Record:
    runs = []
    for rate, needed in rounds.items():
        curve = tuple((n, base.target * min(n / needed, 1.0)) for n in range(needed + 1))
        one = replace(base, learning_rate=rate)
        runs.append(Run(one, needed, f"{needed:064x}", 3600.0, None, "data", curve))
    return Record(name, tuple(runs))


def cell(line: str, column: str, table: str = "2") -> Row:
    found = [r for r in ROWS if (r.table, r.line, r.column) == (table, line, column)]
    return found[0]


def test_of_two_records_of_a_run_the_further_one_counts() -> None:
    early, late = (made_up("x", {0.1: n}, experiment()) for n in (3, 5))
    other = made_up("x", {0.2: 4}, experiment())
    unnamed = Record("x", tuple(replace(run, data="") for run in late.runs))
    both = merged("x", early, unnamed, other, None)
    assert {run.data for run in both.runs} == {"data"}
    assert [(run.experiment.learning_rate, run.last_round) for run in both.runs] == [
        (0.1, 5),
        (0.2, 4),
    ]


def test_of_two_records_with_the_same_bits_the_first_one_stays() -> None:
    ours = made_up("x", {0.1: 4}, experiment())
    theirs = Record("x", tuple(replace(run, training_s=9.0) for run in ours.runs))
    assert merged("x", ours, theirs) == ours
    other = Record("x", tuple(replace(run, digest="f" * 64) for run in theirs.runs))
    assert merged("x", ours, other) == other


def test_tables_say_what_was_reached() -> None:
    best = cell("cnn-e5-b10", "iid")
    sgd = cell("cnn-fedsgd", "iid")
    records = {
        best.name: made_up(best.name, {0.0681: 30, 0.1: 21, 0.1468: 25}, best.experiment),
        sgd.name: made_up(sgd.name, {0.4642: 300}, replace(sgd.experiment, target=0.9)),
    }
    here = standing(best, records)
    assert here is not None
    assert (here.rounds, here.choice.learning_rate, here.choice.inside) == (21, 0.1, True)
    assert here.complete
    assert our_factor(best, records) == (300 / 21, True)
    text = blocks(records, None, [])["table 2, CNN"]
    line = next(line for line in text.splitlines() if "E = 5, B = 10 | iid" in line)
    assert "| 20 (31.3x) | 21.0 (> 14.3x) | **1.05** | 0.1 (0.0681 to 0.1468, 3) | 3.0 |" in line
    assert "| > 300 (90.00%, so far) |" in text
    assert "| not run |" in text


def test_a_document_without_a_place_for_a_table() -> None:
    place = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    assert rendered(place, {"x": "new"}) == place.replace("old", "new")
    with pytest.raises(ConfigError, match="no place for 'y'"):
        rendered(place, {"y": "new"})


def test_the_document_and_the_results_agree() -> None:
    document = (ROOT / "docs" / "fedavg-paper.md").read_text()
    out = ROOT / "results" / "fedavg"
    records, figure = saved(out), read_figure(out)
    texts = blocks(records, figure, plot_names(records), read_over_mqtt(out))
    again = rendered(document, texts)
    assert again == document, "fedtide repro fedavg --report brings it up to date"
    for name in plot_names(records):
        assert (ROOT / "docs" / "fedavg" / f"{name}.svg").exists()


def test_the_list_has_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedavg(tmp_path, "--list") == 0
    said = capsys.readouterr().out
    assert all(one.name in said for one in ROWS)
    assert "from memory" in said


# --- figure 1


def figure_setting() -> Experiment:
    return replace(experiment(), devices=4, epochs=4, fraction=0.5, learning_rate=0.1)


def test_figure_1_measures_parents_and_mixtures(tmp_path: Path) -> None:
    figure = make_figure(figure_setting(), None, 1)
    assert figure == make_figure(figure_setting(), None, 2)
    for side in (figure.independent, figure.shared):
        assert len(side.losses) == 50
        assert (side.thetas[0], side.thetas[-1]) == (-0.2, 1.2)
        # Between two neighbouring mixtures: nothing is mixed up.
        below, above = np.searchsorted(side.thetas, (0.5, 1.0))
        assert min(side.losses[below - 1 : below + 1]) == pytest.approx(side.average, rel=0.05)
        assert side.losses[above] == pytest.approx(side.first_parent, rel=0.2)
    assert figure.shared.first_parent == figure.independent.first_parent


def test_the_verdict_of_figure_1() -> None:
    good, bad = Side(0.4, 0.5, 0.3, (0.5,), (0.3,)), Side(0.4, 0.5, 2.0, (0.5,), (2.0,))
    figure = Figure(figure_setting(), bad, good)
    assert figure.reproduced
    assert figure.verdict() == (
        "figure 1: reproduced: shared init: average 0.300 < best parent 0.400; "
        "independent: average 2.000 > worst parent 0.500"
    )
    for independent, shared in ((good, good), (bad, bad), (good, bad)):
        assert not Figure(figure_setting(), independent, shared).reproduced
    nothing = Side(0.4, 0.5, float("nan"), (0.5,), (0.5,))
    assert not Figure(figure_setting(), bad, nothing).reproduced


def test_figure_1_without_its_finding_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planted bug: the "independent" initialisation is the shared one."""
    monkeypatch.setattr(repro.running, "SETTING", figure_setting())

    def the_same(bundle: Bundle, _seed: int) -> Vector:
        return read_initial_model(bundle)

    monkeypatch.setattr(repro.figure_one, "another_initial_model", the_same)
    assert fedavg(tmp_path, "--figure", "1") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("figure 1: NOT reproduced: ")
    figure = read_figure(tmp_path)
    assert figure is not None
    assert figure.shared == figure.independent


def test_another_initial_model_is_drawn_as_torch_draws() -> None:
    bundle = open_bundle_dir(bundles.build("tiny_cnn"))
    model, again = another_initial_model(bundle, 1), another_initial_model(bundle, 1)
    assert (model == again).all()
    assert (model != another_initial_model(bundle, 2)).mean() > 0.99
    fan_in = {"0": 9, "4": 64}
    for tensor in bundle.manifest.tensors:
        bound = fan_in[tensor.name.split(".")[0]] ** -0.5
        values = model[tensor.offset : tensor.offset + tensor.size]
        assert 0.5 * bound < np.abs(values).max() <= bound
        assert tensor.size < 30 or values.std() == pytest.approx(bound / 3**0.5, rel=0.15)


# --- progress


def test_progress_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    progress = Progress(plain=True, clock=lambda: now_s)
    progress.begin("x", "as asked for", -1, 20)
    for number in range(7):
        now_s = 5.0 * number
        accuracy = Measure(90.0 - number, 100.0)
        progress.version(Version(number, "", metrics=Metrics(100, {"accuracy": accuracy})))
    assert capsys.readouterr().out.splitlines() == [
        "x: begins (as asked for)",
        "x: round 2, accuracy 88.00%, best 90.00%, 5 s a round, 2 min to round 20",
        "x: round 4, accuracy 86.00%, best 90.00%, 5 s a round, 80 s to round 20",
        "x: round 6, accuracy 84.00%, best 90.00%, 5 s a round, 70 s to round 20",
    ]


def test_the_name_of_a_folder() -> None:
    assert folder_name(experiment()) == "lr0.1"
    assert folder_name(replace(experiment(), learning_rate=0.1468, seed=3)) == "lr0.1468-seed3"
    assert os.sep not in folder_name(experiment())


def test_a_figure_that_is_there_is_compared_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Side(0.4, 0.5, 0.3, (0.5,), (0.3,)), Side(0.4, 0.5, 2.0, (0.5,), (2.0,))
    parsed = argparse.Namespace(seed=0, download=False, out=tmp_path, data_dir=None, workers=1)
    made = Figure(figure_setting(), bad, good)
    monkeypatch.setattr(repro.running, "make_figure", lambda *_: made)
    monkeypatch.setattr(repro.running, "SETTING", figure_setting())
    plots = SimpleNamespace(figure_plot=lambda _: "<svg/>")  # the real ones need matplotlib
    monkeypatch.setitem(sys.modules, "repro.plots", plots)
    assert repro.running.run_figure(parsed) == 0
    assert "bits" not in capsys.readouterr().out
    assert repro.running.run_figure(parsed) == 0
    assert "the same bits as" in capsys.readouterr().out
    made = Figure(figure_setting(), good, good)
    assert repro.running.run_figure(parsed) == 1
    assert "not the bits of" in capsys.readouterr().out
    assert read_figure(tmp_path) == Figure(figure_setting(), bad, good)
    parsed.seed = 7
    assert repro.running.run_figure(parsed) == 1
    assert {path.name for path in tmp_path.glob("*.json")} == {
        "figure-1.json",
        "figure-1-seed-7.json",
    }
