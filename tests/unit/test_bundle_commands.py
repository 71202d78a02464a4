"""`fedtide inspect`, `fedtide verify` and `fedtide client benchmark`, as a person meets them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_client import arithmetic, child, verification, verify_command
from edge_client.benchmark import random_batch
from edge_client.fingerprint import difference, errors, fingerprint, start_near
from edge_client.recorded_steps import RecordedSteps, encode_recorded_steps, read_recorded_steps
from edge_client.tables import duration, size, table
from edge_client.trainers import Trainer
from edge_client.trainers.opening import available_runtimes, open_trainer
from edge_client.verification import compare
from fedtide import cli
from fedtide.bundle import open_bundle_dir, sha256_hex
from fedtide.errors import BundleError
from fedtide.manifest import MANIFEST_NAME, File, Tensor, encode_manifest
from fedtide.runtime import import_onnxruntime
from fedtide.safetensors import decode_safetensors, encode_safetensors, read_initial_model
from simulator.faults.fake_learning import fake_bundle
from tests.bundles import build, export_python

needs_runtime = pytest.mark.skipif(not available_runtimes(), reason="no onnxruntime here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a bundle, to be damaged."""
    return copy_of("tiny_mlp", tmp_path)


def copy_of(name: str, tmp_path: Path) -> Path:
    if export_python() is None:
        pytest.skip("there is no environment to export a bundle")
    return Path(shutil.copytree(build(name), tmp_path / name))


def rewrite(folder: Path, contents: dict[str, bytes] | None = None, **changes: Any) -> None:
    """Replace files or fields of the manifest, whose digests fit again."""
    manifest = open_bundle_dir(folder).manifest
    files = dict(manifest.files)
    for name, content in (contents or {}).items():
        (folder / name).write_bytes(content)
        files[name] = File(len(content), sha256_hex(content))
    changed = msgspec.structs.replace(manifest, **({"files": files} | changes))
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed))


# --- inspect


def test_inspect_tells_a_person(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    for words in ("tiny_mlp", "195 in 4 tensors", "780 B down", "classes 0 to 2", "cross_entropy"):
        assert words in told
    for words in ("portable/train.onnx", "Gemm", "sgd, adamw", "examples in a batch"):
        assert words in told
    assert max(len(line) for line in told.splitlines()) <= 110
    assert not any(char in told for char in "\x1b\t")


def test_inspect_tells_which_integers_a_model_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(copy_of("tiny_tokens", tmp_path))]) == 0
    assert "int64, [5] for each example: 0 to 11" in capsys.readouterr().out


def test_inspect_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--json", str(folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["digest"] == open_bundle_dir(folder).digest
    assert told["values"]["trained"] == told["values"]["shared"] == 195
    assert told["graphs"]["portable/train.onnx"]["operators"]["Gemm"] >= 2
    # Two layers: forward 2mn; backward 2mn for the weights, and for the inputs of the second.
    assert told["estimates"]["flops_per_example"] == 2 * (2 * 8 * 16 + 3 * 16 * 3)
    batches = told["estimates"]["batches"]
    assert batches["1"]["step_bytes"] < batches["50"]["step_bytes"]
    assert batches["1"]["step_s"] > 0


def test_inspect_without_estimates_or_numpy_speed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert arithmetic.measure_speed() is None
    assert cli.main(["inspect", str(folder)]) == 0
    assert "time here" not in capsys.readouterr().out
    rewrite(folder, estimates=None)
    assert cli.main(["inspect", str(folder)]) == 0
    assert "no estimates" in capsys.readouterr().out


def swap_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def replace_by(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


@pytest.mark.parametrize("name", ["portable/train.onnx", "inference.onnx", "verification.npz"])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        swap_byte,
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        replace_by(Path.mkdir),
        replace_by(os.mkfifo),
        replace_by(lambda path: path.symlink_to("/dev/zero")),
    ],
)
def test_inspect_refuses_a_damaged_file(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / name)
    assert cli.main(["inspect", str(folder)]) == 3
    assert f"fedtide: error: {name!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"format_version":1e999}',
        b" " * (5 << 20),
    ],
)
def test_inspect_refuses_a_foreign_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: bytes
) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(raw)
    assert cli.main(["inspect", str(tmp_path)]) == 3
    assert "fedtide: error: manifest.json" in capsys.readouterr().err


def test_inspect_does_not_wait_for_a_manifest_that_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / MANIFEST_NAME)
    assert cli.main(["inspect", str(tmp_path)]) == 3
    assert cli.main(["inspect", str(tmp_path / "absent")]) == 3
    assert "no bundle in" in capsys.readouterr().err


def test_what_a_hostile_bundle_says_does_not_reach_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    escape = "\x1b[2J\u202e\r"
    rewrite(folder, name=f"n{escape}", loss=f"l{escape}")
    assert cli.main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert all(line.isprintable() for line in told.splitlines())
    assert "n\\x1b[2J\\u202e\\r" in told
    rewrite(folder, {"portable/train.onnx": f"{escape}".encode() * 9})
    assert cli.main(["inspect", str(folder)]) == 3
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_graph_that_no_device_would_run(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    raw = (folder / "portable/train.onnx").read_bytes()
    rewrite(folder, {"portable/train.onnx": raw.replace(b"Gemm", b"Loop")})
    assert cli.main([command, str(folder)]) == 3
    assert "'Loop' is not on the list" in capsys.readouterr().err


# --- verify


@needs_runtime
@pytest.mark.parametrize("name", ["tiny_mlp", "tiny_norm", "tiny_dropout", "tiny_tokens"])
def test_verify_says_that_a_runtime_is_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if export_python() is None:
        pytest.skip("there is no environment to export a bundle")
    assert cli.main(["verify", str(build(name))]) == 0
    told = capsys.readouterr().out
    assert "portable      as PyTorch" in told
    runtime = next(line for line in told.splitlines() if "ort_training" in line)
    if "ort_training" in available_runtimes():
        assert "as PyTorch" in runtime or "does not offer it" in runtime
    else:
        assert "not run: " in runtime


class Planted:
    """A trainer with an error; everything else is the real one's."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.manifest = trainer.manifest

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


class OtherSign(Planted):
    def step(self, x: Any, y: Any, learning_rate: float, seed: int = 0) -> Any:
        return self.trainer.step(x, y, -learning_rate, seed)


class LargerRate(Planted):
    def step(self, x: Any, y: Any, learning_rate: float, seed: int = 0) -> Any:
        return self.trainer.step(x, y, 1.005 * learning_rate, seed)


class OneTensorStays(Planted):
    def step(self, x: Any, y: Any, learning_rate: float, seed: int = 0) -> Any:
        before = self.trainer.parameters()
        loss = self.trainer.step(x, y, learning_rate, seed)
        after, tensor = self.trainer.parameters(), self.manifest.tensors[-1]
        part = slice(tensor.offset, tensor.offset + tensor.size)
        after[part] = before[part]
        self.trainer.set_parameters(after)
        return loss


class MeanLoss(Planted):
    def step(self, x: Any, y: Any, learning_rate: float, seed: int = 0) -> Any:
        loss = self.trainer.step(x, y, learning_rate, seed)
        return type(loss)(loss.sum / len(x), loss.weight)


class NoNumber(Planted):
    def step(self, x: Any, y: Any, learning_rate: float, seed: int = 0) -> Any:
        loss = self.trainer.step(x, y, learning_rate, seed)
        vector = self.trainer.parameters()
        vector[0] = np.nan
        self.trainer.set_parameters(vector)
        return loss


class TrainsInEvaluation(Planted):
    def evaluate(self, x: Any, y: Any) -> Any:
        self.trainer.step(x, y, 0.1)
        return self.trainer.evaluate(x, y)


class NoGradient(Planted):
    def accumulate(self, x: Any, y: Any, seed: int = 0) -> Any:
        self.trainer.accumulate(x, y, seed)
        return self.trainer.accumulate(x, y, seed)


@needs_runtime
@pytest.mark.parametrize(
    ("planted", "where"),
    [
        (OtherSign, "step 1 (batch of 5), tensor"),
        (LargerRate, "step 1 (batch of 5), tensor"),
        (OneTensorStays, "step 1 (batch of 5), tensor '2.bias'"),
        (MeanLoss, "step 1 (batch of 5), loss"),
        (NoNumber, "step 1 (batch of 5), tensor '0.weight'"),
        (TrainsInEvaluation, "evaluation, loss"),
        (NoGradient, "the gradient of the first batch, tensor"),
    ],
)
def test_verify_catches_an_error(
    planted: type[Planted],
    where: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def opened(*arguments: Any) -> Any:
        return planted(open_trainer(*arguments))

    def asked(_module: str, words: Sequence[str], _seconds_max: float) -> Any:
        return verification.judge(Path(words[0]), "portable", int(words[2]))

    monkeypatch.setattr(verification, "open_trainer", opened)
    monkeypatch.setattr(verify_command, "ask", asked)
    assert cli.main(["verify", str(folder)]) == 5
    told = capsys.readouterr()
    assert f"portable      WRONG: {where}" in told.out
    assert f"runtime portable, {where}" in told.err


@needs_runtime
@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("projections", 1.0, "step 1 (batch of 5), tensor"),
        ("projections", np.nan, "step 1 (batch of 5), tensor"),
        ("losses", np.nan, "step 1 (batch of 5), loss"),
    ],
)
def test_verify_catches_what_pytorch_did_not_compute(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, value: float, where: str
) -> None:
    """By way of the real process, whose answer is JSON: it has no NaN."""
    with np.load(folder / "verification.npz") as stored:
        arrays: dict[str, Any] = dict(stored)
    arrays[name] = arrays[name] + value
    file = io.BytesIO()
    np.savez(file, **arrays)
    rewrite(folder, {"verification.npz": file.getvalue()})
    assert cli.main(["verify", str(folder)]) == 5
    told = capsys.readouterr()
    assert f"portable      WRONG: {where}" in told.out
    assert ("the error is inf times" in told.err) == bool(np.isnan(value))


def test_a_number_that_json_has_not_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    child.answer(lambda: {"ratio": np.inf, "seconds": np.nan, "steps": 3})
    assert json.loads(capsys.readouterr().out) == {"ratio": None, "seconds": None, "steps": 3}


@needs_runtime
def test_dropout_without_its_seed_is_caught(tmp_path: Path) -> None:
    class OtherSeed(Planted):
        def step(self, x: Any, y: Any, learning_rate: float, seed: int = 0) -> Any:
            return self.trainer.step(x, y, learning_rate, seed + 1)

    bundle = open_bundle_dir(copy_of("tiny_dropout", tmp_path))
    trainer: Any = OtherSeed(open_trainer(bundle))
    findings = list(compare(trainer, read_recorded_steps(bundle), read_initial_model(bundle)))
    assert findings[0].error > 1


@needs_runtime
def test_the_margins_are_wide(folder: Path) -> None:
    bundle = open_bundle_dir(folder)
    recorded, initial = read_recorded_steps(bundle), read_initial_model(bundle)
    findings = list(compare(open_trainer(bundle), recorded, initial))
    assert len(findings) == 2 * len(recorded.batches) + 2 + 1
    assert max(findings).error < 0.1


@needs_runtime
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "does not say what PyTorch computed"),
        (b"no archive", "cannot be read"),
        ("compressed", "it is compressed"),
        ("pickled", "cannot be read"),
        ("losses", "no array 'losses'"),
        ("x0", "inputs have shape"),
        ("projections", "projections is"),
        ("y1", "label"),
    ],
)
def test_verify_refuses_foreign_steps(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    if change is None:
        rewrite(folder, verification=None)
    elif isinstance(change, bytes):
        rewrite(folder, {"verification.npz": change})
    else:
        with np.load(folder / "verification.npz") as stored:
            arrays: dict[str, Any] = dict(stored)
        if change == "losses":
            del arrays["losses"]
        elif change == "y1":
            arrays["y1"] = arrays["y1"] + 100
        elif change == "pickled":
            arrays["x0"] = np.array([{}], object)
        elif change != "compressed":
            arrays[change] = arrays[change][..., :1]
        file = io.BytesIO()
        (np.savez_compressed if change == "compressed" else np.savez)(file, **arrays)
        rewrite(folder, {"verification.npz": file.getvalue()})
    assert cli.main(["verify", str(folder)]) == 3
    assert message in capsys.readouterr().err


def test_verify_without_a_runtime(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify_command, "available_runtimes", lambda: ())
    assert cli.main(["verify", str(folder)]) == 2
    assert "onnxruntime is not installed" in capsys.readouterr().err


# --- graphs in a process of their own

CRASHES = {
    "SIGSEGV": (
        "import ctypes; ctypes.string_at(0)",
        r"signal 11 \(SIGSEGV\).*onnxruntime crashed",
    ),
    "SIGABRT": ("import os; os.abort()", r"signal 6 \(SIGABRT\).*onnxruntime crashed"),
    "SIGKILL": (
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        r"signal 9 \(SIGKILL\).*perhaps memory ran out",
    ),
    "exit": ("import os; os._exit(7)", "ended with code 7 and without an answer"),
}
FAKE_RUNTIME = """
from unittest.mock import MagicMock
__version__ = "0"
def __getattr__(name):
    return MagicMock()
def InferenceSession(*_, **__):
    {crash}
"""


@needs_runtime
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("command", [["verify"], ["client", "benchmark", "--seconds", "0.05"]])
@pytest.mark.parametrize("how", sorted(CRASHES))
def test_a_crash_of_the_runtime_is_a_message(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    how: str,
) -> None:
    crash, message = CRASHES[how]
    package = tmp_path / "fake" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_RUNTIME.format(crash=crash))
    import_onnxruntime()  # the real one in this process, the other one in its child
    monkeypatch.syspath_prepend(str(package.parent))
    assert cli.main([*command, str(folder)]) == 3
    told = capsys.readouterr()
    assert re.search(message, told.err)
    assert "failed" in told.out.lower()


@needs_runtime
@pytest.mark.parametrize(
    "command", [["verify"], ["inspect"], ["client", "benchmark", "--seconds", "0.05"]]
)
def test_code_beside_a_bundle_is_never_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for name in ("json", "numpy", "onnxruntime", "edge_client"):
        (folder / f"{name}.py").write_text("open('it_ran', 'w')")
    monkeypatch.chdir(folder)
    assert cli.main([*command, "."]) == 0
    assert not (folder / "it_ran").exists()


def test_a_child_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waits_for_ever.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert child.ask("waits_for_ever", [], 0.5) == {"error": "it took longer than 0.5 s"}


# --- fingerprints


def tensors_of(*sizes: int) -> tuple[Tensor, ...]:
    offsets = np.cumsum([0, *sizes])
    return tuple(
        Tensor(f"t{index}", (count,), int(offsets[index]), "parameter", shared=True)
        for index, count in enumerate(sizes)
    )


def test_fingerprints_are_the_same_bits_forever() -> None:
    """Signs and noise must not depend on a version of numpy: bundles hold what they gave."""
    tensors = tensors_of(3, 5000)
    vector = np.linspace(-1, 1, 5003, dtype=np.float32)
    found = fingerprint(vector, tensors)
    assert found.projections[0, :4] == pytest.approx(PROJECTIONS_OF_THREE, abs=1e-6)
    assert found.projections[1, :4] == pytest.approx(PROJECTIONS_OF_MANY, abs=1e-6)
    start = start_near(vector, tensors, seed=7)
    assert sha256_hex(start.astype("<f4").tobytes())[:16] == START_SHA256
    assert np.abs(start - vector).max() <= 0.035 + 1e-6


PROJECTIONS_OF_THREE = [-1.0003998, -0.9996002, -2.9988005, -1.0003998]
PROJECTIONS_OF_MANY = [-58.3526582, -10.0351855, -24.9460207, -61.9808103]
START_SHA256 = "d666ab9be11028b5"


@pytest.mark.parametrize("count", [1, 100, 50_000])
def test_an_error_is_what_the_tolerance_says(count: int) -> None:
    """An error of f times the allowed one in every value is found as about f."""
    tensors = tensors_of(count)
    rng = np.random.default_rng(count)
    change = np.where(rng.random(count) < 0.5, -0.01, 0.01).astype(np.float32)
    expected = fingerprint(change, tensors)
    allowed = 1e-6 + 1e-3 * 0.01
    for factor, least, most in ((0.2, 0.05, 0.5), (5.0, 1.5, 12.0)):
        noise = np.where(rng.random(count) < 0.5, -1, 1) * factor * allowed
        wrong = fingerprint((change + noise).astype(np.float32), tensors)
        assert least < errors(wrong, expected, tensors)[0] < most


def test_a_sparse_change_that_is_missing_is_found() -> None:
    """As of an embedding, of which a batch touches a few rows."""
    tensors = tensors_of(1_000_000)
    change = np.zeros(1_000_000, np.float32)
    change[::100_000] = 0.01
    expected = fingerprint(change, tensors)
    assert errors(fingerprint(0 * change, tensors), expected, tensors)[0] > 100
    moved = np.roll(change, 1)
    assert errors(fingerprint(moved, tensors), expected, tensors)[0] > 2


def test_infinite_values_that_stay_are_no_change() -> None:
    before = np.array([-np.inf, np.inf, 1.0], np.float32)
    after = np.array([-np.inf, 0.0, 2.0], np.float32)
    assert difference(before, before).tolist() == [0, 0, 0]
    assert difference(after, before).tolist() == [0, -np.inf, 1]


def test_a_variance_stays_positive() -> None:
    tensors = (Tensor("v", (1000,), 0, "statistic", shared=True),)
    assert (start_near(np.full(1000, 1e-3, np.float32), tensors, 0) >= 1e-3).all()


def test_recorded_steps_survive_the_file(folder: Path) -> None:
    bundle = open_bundle_dir(folder)
    recorded = read_recorded_steps(bundle)
    assert isinstance(recorded, RecordedSteps)
    assert [len(x) for x, _ in recorded.batches] == [5, 3, 5, 1]
    assert encode_recorded_steps(recorded) == (folder / "verification.npz").read_bytes()


# --- the initial model


def test_the_initial_model_in_a_file() -> None:
    vector = np.array([1.5, -np.inf, 3e38], np.float32)
    raw = encode_safetensors(vector)
    assert raw[8 : 8 + raw[0]].rstrip() == (
        b'{"vector":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    )
    np.testing.assert_array_equal(decode_safetensors(raw), vector)
    for wrong in (
        b"",
        raw[:20],
        raw[:-1],
        raw + b"\0",
        raw.replace(b"F32", b"F16"),
        raw.replace(b"[3]", b"[4]"),
        raw.replace(b"[3]", b"[0]"),
        raw.replace(b"[0,12]", b"[4,16]"),
        raw.replace(b"vector", b"vektor"),
        b"\xff" * 16,
        (2).to_bytes(8, "little") + b"{}",
    ):
        with pytest.raises(ValueError):
            decode_safetensors(wrong)


def test_an_initial_model_of_another_size_is_refused() -> None:
    with pytest.raises(BundleError, match="the initial model 'initial': the header"):
        read_initial_model(fake_bundle())


# --- client benchmark


@needs_runtime
def test_benchmark_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["client", "benchmark", str(folder), "--seconds", "0.05", "--batch-size", "1,4"]
    assert cli.main([*arguments, "--runtime", "all", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    offered = open_bundle_dir(folder).manifest.runtimes.ort_training is not None
    runtimes = [name for name in available_runtimes() if name == "portable" or offered]
    assert [(entry["runtime"], entry["batch_size"]) for entry in told["results"]] == [
        (runtime, batch) for runtime in runtimes for batch in (1, 4)
    ]
    for entry in told["results"]:
        assert entry["threads"] == 1
        assert entry["steps"] >= 3
        assert 0 < entry["median_s"] <= entry["p90_s"]
        assert entry["load_s"] > 0
        assert entry["model_bytes"] == 4 * 195
        if sys.platform == "linux":
            assert 0 < entry["resident_before_bytes"] <= entry["resident_peak_bytes"]
    assert len(captured.err.splitlines()) == len(told["results"])


@needs_runtime
def test_benchmark_as_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["client", "benchmark", str(folder), "--seconds", "0.05"]) == 0
    title, head, row, _ = capsys.readouterr().out.splitlines()
    assert title.startswith("tiny_mlp, bundle ")
    assert head.split()[:3] == ["runtime", "threads", "batch"]
    assert row.split()[:3] == [available_runtimes()[0], "1", "10"]


@needs_runtime
def test_benchmark_of_a_bundle_that_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "portable" / "train.onnx").unlink()
    assert cli.main(["client", "benchmark", str(folder), "--seconds", "0.05"]) == 3
    captured = capsys.readouterr()
    assert "failed" in captured.out
    assert "train.onnx" in captured.err


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch-size", "0"],
        ["--batch-size", "a,b"],
        ["--threads", " "],
        ["--threads", "1025"],
        ["--seconds", "nan"],
    ],
)
def test_benchmark_refuses_flags(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["client", "benchmark", "bundle", *flags])
    assert stop.value.code == 2
    assert "is no " in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "x", "1025", "999999999", "9" * 5000])
def test_verify_refuses_threads(threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", "bundle", "--threads", threads])
    assert stop.value.code == 2
    assert "is not a number from 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny_mlp", "tiny_tokens", "tiny_regression"])
def test_random_batches_fit(name: str, tmp_path: Path) -> None:
    bundle = open_bundle_dir(copy_of(name, tmp_path))
    x, y = random_batch(bundle, 200)
    manifest = bundle.manifest
    assert (x.shape, x.dtype.name) == ((200, *manifest.inputs.shape), manifest.inputs.dtype)
    assert (y.shape, y.dtype.name) == ((200, *manifest.labels.shape), manifest.labels.dtype)
    if x.dtype == np.int64:
        tried = np.concatenate([x for x, _ in read_recorded_steps(bundle).batches])
        assert 0 <= x.min() <= x.max() == tried.max()


def test_the_client_still_wants_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["client"]) == 2
    assert "--config FILE" in capsys.readouterr().err


def test_text_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 2_500_000, 3e9)] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 GB",
    ]  # fmt: skip
    assert [duration(s) for s in (2, 0.0345, 0.0000567)] == ["2.0 s", "34.5 ms", "57 µs"]
    assert table([("a", "1"), ("bb", "22")], right=1) == "  a    1\n  bb  22"
