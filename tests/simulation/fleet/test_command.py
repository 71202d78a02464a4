"""`fedtide simulate`: side by side, interrupted, replayed; and what people get wrong."""

import gzip
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from fedtide.cli import main
from fedtide.errors import StateError
from simulator.command import _check_packages
from simulator.fleet import policy_run
from simulator.fleet.environment import packages
from simulator.fleet.events import Event, On
from simulator.fleet.policy_run import scenario_from
from simulator.fleet.record import Header, Recorder, read_record
from simulator.fleet.scenario import policies
from simulator.fleet.totals import Totals

TEXT = """
name = "small"
[fleet]
devices = 6
group = [{ step_ms = 10.0 }]
[learning]
parameters = 1000
[rounds]
count = 4
cohort_size = 3
[availability]
kind = "churn"
on_s = 20.0
off_s = 5.0
[[policy]]
name = "wait"
[[policy]]
name = "more"
rounds = { over_selection = 2.0 }
"""


class Silent:
    """Progress that nobody sees."""

    def begin(self, policy: str, rounds: int) -> None: ...

    def round(self, policy: str, totals: Totals) -> None: ...

    def end(self, policy: str, totals: Totals) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture(autouse=True)
def _without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have tests of their own."""
    monkeypatch.setattr("simulator.report.open_progress", lambda plain: Silent())
    monkeypatch.setattr("simulator.command._report", lambda *_: None)
    monkeypatch.setattr("simulator.command._check_packages", lambda: None)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the policies that are run from now on."""
    ran: list[str] = []

    def run(*arguments: Any, **more: Any) -> None:
        ran.append(arguments[1].name)
        policy_run.run_policy(*arguments, **more)

    monkeypatch.setattr("simulator.command.run_policy", run)
    return ran


def interrupted_at(name: str, ran: list[str]) -> Any:
    """Somebody presses Ctrl-C as soon as this policy begins."""

    def run(*arguments: Any, **more: Any) -> None:
        ran.append(arguments[1].name)
        if arguments[1].name == name:
            raise KeyboardInterrupt
        policy_run.run_policy(*arguments, **more)

    return run


def simulate(*words: object) -> int:
    return main(["simulate", *map(str, words)])


def test_policies_side_by_side_or_in_turn_give_the_same(scenario: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        out = tmp_path / f"{workers}"
        assert simulate(scenario, "--out", out, "--workers", workers) == 0
    for name in ("wait", "more"):
        one, two = (read_record(tmp_path / n / f"{name}.jsonl.gz") for n in "12")
        assert one.complete
        assert one.header == two.header
        assert one.digest == two.digest
        contents = [(tmp_path / n / f"{name}.jsonl.gz").read_bytes() for n in "12"]
        assert contents[0] == contents[1]
        assert contents[0][4:8] == bytes(4), "no time in it"
    assert not (tmp_path / "1" / "wait.models").exists()


def test_what_is_recorded_is_not_run_again(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert simulate(scenario, "--out", out, "--policy", "wait") == 0
    ran = noted(monkeypatch)
    assert simulate(scenario, "--out", out, "--workers", 1) == 0
    assert ran == ["more"]
    assert simulate(scenario, "--out", out, "--workers", 1, "--force") == 0
    assert ran == ["more"], "--force is about another scenario's results"


def test_only_policies_that_changed_or_are_new_are_run(
    scenario: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, ran = tmp_path / "out", noted(monkeypatch)
    shown: list[list[str]] = []
    monkeypatch.setattr(
        "simulator.command._report",
        lambda _, chosen, *more: shown.append([policy.name for policy in chosen]),
    )

    def run(text: str, *words: object) -> list[str]:
        scenario.write_text(text)
        ran.clear()
        assert simulate(scenario, "--out", out, "--workers", 1, *words) == 0
        return list(ran)

    assert run(TEXT) == ["wait", "more"]
    (out / "more.models").mkdir()
    (out / "wait.models").mkdir()
    more = read_record(out / "more.jsonl.gz").digest
    third = '[[policy]]\nname = "third"\n'
    assert run(TEXT + third) == ["third"]
    changed = TEXT.replace("over_selection = 2.0", "over_selection = 1.5")
    capsys.readouterr()
    assert run(changed, "--policy", "wait") == []
    assert read_record(out / "more.jsonl.gz").digest == more, "nobody asked for it"
    assert capsys.readouterr().err == ""
    assert run(changed) == ["more"]
    assert "'more' is another one than that recorded" in capsys.readouterr().err
    assert not (out / "more.models").exists(), "what it had learned is of other settings"
    assert (out / "wait.models").exists()
    assert read_record(out / "more.jsonl.gz").digest != more
    assert shown[-1] == ["wait", "more"]
    assert run(changed + third) == [], "the record of one that was not in the file was kept"
    assert shown[-1] == ["wait", "more", "third"]
    assert simulate("--replay", out / "more.jsonl.gz") == 0


def test_what_another_version_recorded_is_run_anew(
    scenario: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its fleet may have done otherwise, and what it learned is of that."""
    out, ran = tmp_path / "out", noted(monkeypatch)
    with monkeypatch.context() as earlier:
        earlier.setattr("simulator.fleet.policy_run.__version__", "0.0.9")
        assert simulate(scenario, "--out", out, "--workers", 1, "--policy", "wait") == 0
    assert simulate(scenario, "--out", out, "--workers", 1, "--policy", "more") == 0
    (out / "wait.models").mkdir()
    ran.clear()
    capsys.readouterr()
    assert simulate(scenario, "--out", out, "--workers", 1) == 0
    assert "policy 'wait' was recorded by fedtide 0.0.9 in" in capsys.readouterr().err
    assert ran == ["wait"]
    assert not (out / "wait.models").exists()
    ran.clear()
    assert simulate(scenario, "--out", out, "--workers", 1) == 0
    assert ran == []


def test_what_was_begun_with_force_goes_on_with_the_same_command(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert simulate(scenario, "--out", out) == 0
    ran = noted(monkeypatch)
    again = ("--out", out, "--workers", 1, "--seed", 9, "--force")
    with monkeypatch.context() as patched:
        patched.setattr("simulator.command.run_policy", interrupted_at("more", ran))
        assert simulate(scenario, *again) == 130
    assert simulate(scenario, *again) == 0
    assert ran == ["wait", "more", "more"]


def test_a_folder_whose_scenario_is_damaged_is_left_alone(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert simulate(scenario, "--out", out) == 0
    for damaged in (
        b"",
        b"[1]",
        b'{"policy": 3}',
        b'{"policy": [3]}',
        b'{"policy": [{}]}',
        b'{"inputs": 3}',
    ):
        (out / "scenario.json").write_bytes(damaged)
        assert simulate(scenario, "--out", out) == 7
        assert "scenario.json is damaged" in capsys.readouterr().err


def with_trace(tmp_path: Path) -> tuple[str, Path]:
    """The scenario with a trace of two devices."""
    trace = tmp_path / "on.csv"
    trace.write_text("device,from_s,until_s\n0,0,5000\n1,0,5000\n")
    own = 'kind = "trace"\ntrace = "on.csv"\n'
    return TEXT.replace('kind = "churn"\non_s = 20.0\noff_s = 5.0\n', own), trace


def test_a_file_with_another_content_makes_another_scenario(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, trace = with_trace(tmp_path)
    scenario.write_text(text)
    out = tmp_path / "out"
    assert simulate(scenario, "--out", out) == 0
    path = out / "wait.jsonl.gz"
    digest = read_record(path).digest
    assert simulate("--replay", path) == 0
    trace.write_text("device,from_s,until_s\n0,0,5000\n1,60,5000\n")
    capsys.readouterr()
    assert simulate("--replay", path) == 1
    assert "the file of availability.trace is not that which" in capsys.readouterr().err
    assert simulate(scenario, "--out", out) == 2
    assert "results with another file as availability.trace" in capsys.readouterr().err
    assert simulate(scenario, "--out", out, "--force") == 0
    assert read_record(path).digest != digest
    trace.unlink()
    assert simulate("--replay", path) == 2
    assert "on.csv" in capsys.readouterr().err


def test_results_of_before_files_were_known_by_their_content_are_kept(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = with_trace(tmp_path)
    scenario.write_text(text)
    out = tmp_path / "out"
    assert simulate(scenario, "--out", out) == 0
    for name in ("wait", "more"):
        path = out / f"{name}.jsonl.gz"
        header, *others = gzip.decompress(path.read_bytes()).split(b"\n")
        raw = msgspec.json.decode(header)
        assert set(raw.pop("inputs")) == {"availability.trace"}
        path.write_bytes(gzip.compress(b"\n".join([msgspec.json.encode(raw), *others])))
    raw = msgspec.json.decode((out / "scenario.json").read_bytes())
    del raw["inputs"]
    (out / "scenario.json").write_bytes(msgspec.json.encode(raw))
    ran = noted(monkeypatch)
    assert simulate("--replay", out / "wait.jsonl.gz") == 0
    assert simulate(scenario, "--out", out, "--workers", 1) == 0
    assert ran == []
    assert "inputs" in msgspec.json.decode((out / "scenario.json").read_bytes())


def test_an_interrupted_run_leaves_what_there_is_and_goes_on(
    scenario: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert simulate(scenario, "--out", whole, "--policy", "wait") == 0
    write, count = Recorder.write, 0

    def interrupted(recorder: Recorder, event: Event) -> None:
        nonlocal count
        count += 1
        if count == 40:
            raise KeyboardInterrupt
        write(recorder, event)

    told: list[list[str]] = []
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "write", interrupted)
        patched.setattr(
            "simulator.command._report",
            lambda _, left, *more: told.append([policy.name for policy in left]),
        )
        assert simulate(scenario, "--out", out, "--workers", 1) == 130
    assert told == [["wait"]]
    error = capsys.readouterr().err
    assert "the same command goes on" in error
    assert error.count("fedtide: ") == 1
    left = read_record(out / "wait.jsonl.gz")
    assert not left.complete
    assert left.totals.events == 39
    assert simulate("--replay", left.path) == 0
    assert "the record is incomplete" in capsys.readouterr().out
    assert simulate(scenario, "--out", out, "--policy", "wait") == 0
    assert read_record(left.path).digest == read_record(whole / "wait.jsonl.gz").digest


def test_a_replay_gives_the_same_and_finds_what_was_changed(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(scenario, "--out", tmp_path / "out", "--policy", "wait") == 0
    path = tmp_path / "out" / "wait.jsonl.gz"
    assert simulate("--replay", path) == 0
    told = capsys.readouterr().out
    assert "the same as recorded" in told
    assert "incomplete" not in told
    lines = gzip.decompress(path.read_bytes()).split(b"\n")
    for number in (1, 30, len(lines) - 3):
        changed = [
            line.replace(b"]", b",7]") if n == number else line for n, line in enumerate(lines)
        ]
        path.write_bytes(gzip.compress(b"\n".join(changed)))
        assert simulate("--replay", path) == 1
        assert f"event {number} is another one" in capsys.readouterr().err
    header = msgspec.json.decode(lines[0])
    header["scenario"]["seed"] = 5
    path.write_bytes(gzip.compress(b"\n".join([msgspec.json.encode(header), *lines[1:]])))
    assert simulate("--replay", path) == 1


def test_another_seed_is_another_fleet(scenario: Path, tmp_path: Path) -> None:
    digests = set()
    for seed in (0, 1, 2):
        out = tmp_path / str(seed)
        assert simulate(scenario, "--out", out, "--seed", seed, "--policy", "wait") == 0
        digests.add(read_record(out / "wait.jsonl.gz").digest)
    assert len(digests) == 3


def test_flags_are_for_policies_with_keys_of_their_own_too(scenario: Path, tmp_path: Path) -> None:
    own = 'name = "wait"\nrounds = { seed = 5, count = 9, quorum = 2 }'
    scenario.write_text(TEXT.replace('name = "wait"', own))
    assert simulate(scenario, "--out", tmp_path / "o", "--seed", 3, "--rounds", 2) == 0
    header = read_record(tmp_path / "o" / "wait.jsonl.gz").header
    scenario_read = scenario_from(header.scenario, "the record")
    for policy in policies(scenario_read):
        assert (policy.rounds.seed, policy.rounds.count) == (3, 2)
    assert policies(scenario_read)[0].rounds.quorum == 2


def test_flags_change_the_size(scenario: Path, tmp_path: Path) -> None:
    flags = ("--devices", 4, "--rounds", 2, "--hours", 1)
    assert simulate(scenario, "--out", tmp_path / "o", "--policy", "wait", *flags) == 0
    header = read_record(tmp_path / "o" / "wait.jsonl.gz").header
    assert (header.devices, header.rounds, header.scenario["hours_max"]) == (4, 2, 1.0)


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (["--devices", 0], "--devices 0", 2),
        (["--rounds", -1], "--rounds -1", 2),
        (["--hours", 0], "--hours 0", 2),
        (["--hours", "nan"], "--hours nan", 2),
        (["--seed", -1], "--seed -1", 2),
        (["--workers", 0], "--workers is 0", 2),
        (["--target", 2], "--target is 2", 2),
        (["--policy", "none"], "wait, more", 2),
        (["--replay", "x"], "not both", 2),
    ],
)
def test_impossible_flags(
    scenario: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[object],
    said: str,
    code: int,
) -> None:
    assert simulate(scenario, "--out", tmp_path / "out", *flags) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "said", "code"),
    [
        ("count = 4", "counts = 4", "counts", 2),
        ("[availability]", "[dropouts]\nin_training = 1.5\n[availability]", "in_training", 2),
        ('kind = "churn"', 'kind = "trace"\ntrace = "none.csv"', "none.csv", 2),
        (
            "parameters = 1000",
            'kind = "real"\nmodel = "mnist_2nn"\ndata = "mnist"\ndata_dir = "none"',
            "none",
            4,
        ),
        ("parameters = 1000", 'kind = "real"\nmodel = "digits"\ndata = "moon"', "moon", 2),
        (
            "parameters = 1000",
            'kind = "real"\nmodel = "mnist_2nn"\ndata = "digits"',
            "models for 'digits': digits",
            2,
        ),
    ],
)
def test_bad_scenarios(
    scenario: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    said: str,
    code: int,
) -> None:
    """The data are looked at before a bundle is."""
    monkeypatch.setattr("simulator.fleet.real_learning.named_bundle", pytest.fail)
    text = TEXT.replace(old, new)
    scenario.write_text(
        text if "trace" not in new else text.replace("on_s = 20.0\noff_s = 5.0", "")
    )
    assert simulate(scenario, "--out", tmp_path / "out") == code
    assert said in capsys.readouterr().err


def test_a_folder_of_another_scenario_is_left_alone(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert simulate(scenario, "--out", out) == 0
    digest = read_record(out / "wait.jsonl.gz").digest
    assert simulate(scenario, "--out", out, "--seed", 9) == 2
    error = capsys.readouterr().err
    assert "--force" in error
    assert read_record(out / "wait.jsonl.gz").digest == digest
    assert "results of another scenario, seed or size: seed was 0, and is 9" in error
    (out / "mine.html").write_text("not of a simulation")
    assert simulate(scenario, "--out", out, "--seed", 9, "--force") == 0
    assert read_record(out / "wait.jsonl.gz").digest != digest
    assert (out / "mine.html").exists()


def test_a_folder_without_records_is_anybody_s(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    real = TEXT.replace("parameters = 1000", "kind = 'real'\nmodel = 'mnist_2nn'\ndata = 'mnist'")
    scenario.write_text(real.replace("data =", "data_dir = 'none'\ndata ="))
    assert simulate(scenario, "--out", out) == 4
    scenario.write_text(TEXT)
    assert simulate(scenario, "--out", out) == 0


def test_a_package_that_is_missing_is_said_before_anything_is_done(
    scenario: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simulator.command._check_packages", _check_packages)
    monkeypatch.setattr(
        "simulator.command.find_spec", lambda name: None if name == "matplotlib" else object()
    )
    assert simulate(scenario, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "'matplotlib'" in told
    assert ".[simulate]" in told
    assert not (tmp_path / "out").exists()


def test_force_removes_nothing_where_no_simulation_was(scenario: Path, tmp_path: Path) -> None:
    log = tmp_path / "mine.jsonl.gz"
    log.write_text("not of a simulation")
    assert simulate(scenario, "--out", tmp_path, "--force") == 0
    assert log.read_text() == "not of a simulation"


def test_nobody_s_report_is_overwritten(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "report.html").write_text("a thesis")
    assert simulate(scenario, "--out", out) == 2
    assert "no simulation was run there" in capsys.readouterr().err
    assert (out / "report.html").read_text() == "a thesis"
    assert simulate(scenario, "--out", out, "--force") == 0


def begun_elsewhere(path: Path) -> None:
    """As if the record's run had learned with other packages."""
    header, *rest = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    other = header.replace(b'"packages":{}', b'"packages":{"onnxruntime":"0.9"}')
    assert other != header
    path.write_bytes(gzip.compress(b"".join([other, *rest])))


def test_a_run_goes_on_with_the_packages_it_was_begun_with(
    scenario: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert simulate(scenario, "--out", tmp_path, "--policy", "wait") == 0
    path, ran = tmp_path / "wait.jsonl.gz", noted(monkeypatch)
    begun_elsewhere(path)
    assert simulate(scenario, "--out", tmp_path, "--policy", "wait") == 0
    assert ran == [], "what came to its end stays what it is"
    *begun, _end = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(begun)))
    capsys.readouterr()
    assert simulate(scenario, "--out", tmp_path, "--policy", "wait") == 2
    told = capsys.readouterr().err
    assert "begun" in told
    assert "onnxruntime 0.9" in told
    assert ran == []
    assert simulate(scenario, "--out", tmp_path, "--policy", "wait", "--force") == 0
    assert ran == ["wait"]


def test_a_replay_names_the_packages_that_differ(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(scenario, "--out", tmp_path, "--policy", "wait") == 0
    path = tmp_path / "wait.jsonl.gz"
    begun_elsewhere(path)
    header, first, second, *rest = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([header, second, first, *rest])))
    assert simulate("--replay", path) == 1
    assert "was made with onnxruntime 0.9, and here is" in capsys.readouterr().err


def test_the_packages_are_those_that_are_imported() -> None:
    import numpy as np
    import onnxruntime

    known = packages()
    assert known["numpy"] == np.__version__
    assert onnxruntime.__version__ in [v for k, v in known.items() if k.startswith("onnxruntime")]


@pytest.mark.parametrize("flag", ["--seed", "--devices", "--rounds", "--hours", "--target"])
def test_a_replay_goes_without_what_would_change_it(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("--replay", tmp_path / "wait.jsonl.gz", flag, 1) == 2
    assert f"--replay goes without {flag}" in capsys.readouterr().err


def test_without_accuracy_there_is_no_target(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(scenario, "--out", tmp_path / "out", "--target", 0.9) == 2
    assert "there is no accuracy" in capsys.readouterr().err


def test_an_empty_flag_is_no_folder(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--out", ""], ["--out="]):
        assert simulate(scenario, *words) == 2
        assert "--out is empty" in capsys.readouterr().err


def test_a_replay_misses_events_that_were_cut_out_before_the_end(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(scenario, "--out", tmp_path, "--policy", "wait") == 0
    path = tmp_path / "wait.jsonl.gz"
    header, *events, end = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([header, *events[:-3], end])))
    assert simulate("--replay", path) == 7
    assert "not those that were recorded" in capsys.readouterr().err


def test_a_place_that_cannot_be_used(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert simulate(scenario, "--out", tmp_path / "file") == 7
    assert "cannot use the folder" in capsys.readouterr().err
    assert simulate("--replay", tmp_path / "none") == 7
    assert simulate() == 2


def test_a_full_disk_is_said() -> None:
    header = Header({}, 0, "x", 1, 1, "modelled", 1, 1, "0")
    recorder = Recorder(Path("/dev/full"), header)
    recorder.write(On(0, 0))
    with pytest.raises(StateError, match="No space left"):
        recorder.close()
