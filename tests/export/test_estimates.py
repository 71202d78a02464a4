"""Estimates of a step's cost, and wrong graphs that `fedtide verify` must notice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import safetensors.numpy  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from export import ModelSpec  # noqa: E402
from export.estimates import _flops, estimate, peak_bytes  # noqa: E402
from export.exporting import export_bundle  # noqa: E402
from export.inspection import inspect_model  # noqa: E402
from export.models import fedavg  # noqa: E402
from export.portable_step import train_graph  # noqa: E402
from fedtide import cli  # noqa: E402
from fedtide.bundle import open_bundle_dir, sha256_hex  # noqa: E402
from fedtide.manifest import MANIFEST_NAME, File, encode_manifest  # noqa: E402
from fedtide.safetensors import encode_safetensors  # noqa: E402


def graph(nodes: list[onnx.NodeProto], outputs: list[str], **initializers: int) -> onnx.GraphProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, (count,), [0.0] * count)
        for name, count in initializers.items()
    ]
    inputs = [value("x"), value("y"), value("tensor.w")]
    return helper.make_graph(nodes, "g", inputs, [value(o) for o in outputs], constants)


def node(kind: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output])


def test_peak_of_a_chain_with_views_and_results_in_place() -> None:
    sizes = {"x": 10, "y": 1, "c": 5, "a": 100, "v": 100, "b": 100, "d": 40, "loss": 4, "new.w": 7}
    nodes = [
        node("MatMul", "x tensor.w", "a"),
        node("Reshape", "a c", "v"),  # the same memory
        node("Relu", "v", "b"),  # in place: nobody else reads a
        node("MatMul", "b tensor.w", "d"),
        node("ReduceSum", "d", "loss"),
        node("Gemm", "d d", "new.w"),
    ]
    g = graph(nodes, ["loss", "new.w"], c=5)
    # The batch and the constant always; b beside d; the outputs are the model's own memory.
    assert peak_bytes(g, sizes) == (10 + 1 + 5) + 100 + 40
    # A second reader of a, later than the Relu: now a and b are two.
    nodes[4] = node("Add", "a d", "loss")
    g = graph(nodes, ["loss", "new.w"], c=5)
    assert peak_bytes(g, sizes) == (10 + 1 + 5) + 100 + 100 + 40


def test_a_result_that_nobody_reads_is_freed() -> None:
    sizes = {"x": 0, "y": 0, "a": 100, "b": 60, "loss": 4}
    nodes = [node("Exp", "x", "a"), node("Exp", "x", "b"), node("MatMul", "b y", "loss")]
    assert peak_bytes(graph(nodes, ["loss"]), sizes) == 100


def test_what_a_subgraph_reads_stays_alive() -> None:
    body = helper.make_graph([node("Add", "a s", "t")], "body", [], [])
    scan = helper.make_node("Scan", ["b"], ["loss"], body=body)
    sizes = {"x": 0, "y": 0, "a": 100, "b": 60, "loss": 4}
    g = graph([node("Exp", "x", "a"), node("Exp", "x", "b"), scan], ["loss"])
    assert peak_bytes(g, sizes) == 160


def test_operations_of_a_step_by_hand() -> None:
    """Forward, and backward for weights and, after the first layer, for inputs; 2 for each
    multiplication and addition."""
    model = inspect_model(fedavg.mnist_2nn(), "m")
    layers = [(784, 200), (200, 200), (200, 10)]
    by_hand = sum(2 * m * n * (2 if m == 784 else 3) for m, n in layers)
    assert _flops(model) == 4 * by_hand


def test_operations_of_recurrent_layers_are_counted() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    model = inspect_model(ModelSpec(Last(), torch.zeros(1, 5, 6), "cross_entropy"), "m")
    forward = 5 * 2 * (6 + 8) * 4 * 8
    assert 2 * forward <= _flops(model) / 4 <= 3.2 * (forward + 2 * 8 * 3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_memory_grows_with_the_batch(dropout: float) -> None:
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, 4)]
    model = inspect_model(ModelSpec(nn.Sequential(*layers), torch.zeros(1, 64), "mse"), "m")
    found = estimate(model, train_graph(model, 18))
    # An example is 64 floats and its hidden values, of which some copies are alive.
    assert 4 * (64 + 256) <= found.memory_per_example_bytes <= 4 * (64 + 20 * 256)
    assert found.memory_fixed_bytes < 4 * 70_000


@pytest.fixture(scope="module")
def normalised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "normalised"
    export_bundle(spec(nn.BatchNorm1d(6)), out, name="normalised", ort_training=False)
    return out


def spec(norm: nn.Module) -> ModelSpec:
    torch.manual_seed(5)
    layers = (nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3))
    return ModelSpec(nn.Sequential(*layers), torch.zeros(1, 4), "cross_entropy")


class NormalisesByTheOldStatistics(nn.BatchNorm1d):
    """What inference does, in training; the statistics follow as they should."""

    def forward(self, x: Any) -> Any:
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        y = functional.batch_norm(x, mean.clone(), var.clone(), self.weight, self.bias)
        with torch.no_grad():
            mean.copy_(0.9 * mean + 0.1 * x.mean(0))
            var.copy_(0.9 * var + 0.1 * x.var(0))
        return y


def other_sign(model: onnx.ModelProto) -> None:
    for part in model.graph.node:
        for index, name in enumerate(part.input):
            if name == "scale":
                part.input[index] = "minus_scale"
    model.graph.node.insert(0, helper.make_node("Neg", ["scale"], ["minus_scale"]))


def stays(name: str, source: str) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        kept = [part for part in model.graph.node if f"new.{name}" not in part.output]
        assert len(kept) < len(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.node.append(helper.make_node("Identity", [source + name], [f"new.{name}"]))

    return plant


def old_statistics(model: onnx.ModelProto) -> None:
    wrong = inspect_model(spec(NormalisesByTheOldStatistics(6)), "normalised")
    model.CopyFrom(train_graph(wrong, 18))


@pytest.mark.parametrize(
    ("plant", "where"),
    [
        (lambda model: None, ""),
        (other_sign, "step 1 (batch of 5), tensor"),
        (stays("3.bias", "base."), "step 1 (batch of 5), tensor '3.bias'"),
        (stays("1.running_var", "tensor."), "step 1 (batch of 5), tensor '1.running_var'"),
        (old_statistics, "step 1 (batch of 5), loss"),
    ],
)
def test_verify_notices_a_wrong_graph(
    plant: Callable[[onnx.ModelProto], None],
    where: str,
    normalised: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = open_bundle_dir(normalised)
    path = bundle.manifest.runtimes.portable.train
    originals = {name: (normalised / name).read_bytes() for name in (path, MANIFEST_NAME)}
    model = onnx.load_from_string(originals[path])
    plant(model)
    raw = model.SerializeToString()
    files = bundle.manifest.files | {path: File(len(raw), sha256_hex(raw))}
    try:
        (normalised / path).write_bytes(raw)
        changed = msgspec.structs.replace(bundle.manifest, files=files)
        (normalised / MANIFEST_NAME).write_bytes(encode_manifest(changed))
        assert cli.main(["verify", str(normalised)]) == (5 if where else 0)
    finally:
        for name, content in originals.items():
            (normalised / name).write_bytes(content)
    assert where in capsys.readouterr().err


def test_a_failed_export_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import export.exporting

    def wrong(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(export.exporting, "verify_bundle", wrong)
    source = tmp_path / "source" / "a_model.py"
    source.parent.mkdir()
    source.write_text(
        "import torch\nfrom export import ModelSpec\n"
        "def build():\n    return ModelSpec(torch.nn.Linear(3, 2), torch.zeros(1, 3), 'mse')\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    out = tmp_path / "new" / "folders" / "bundle"
    flags = ["--runtime", "portable", "--out", str(out)]
    assert cli.main(["export", f"{source}:build", *flags]) == 130
    assert not out.parent.parent.exists()
    stages = capsys.readouterr().err.splitlines()
    assert stages[0].startswith("loading the model ... ")
    assert any(line.startswith("differentiating and translating") for line in stages)
    assert all(" ... " in line and line.endswith(" s") for line in stages[:-1])
    assert " stopped after " in stages[-2]


def test_our_few_lines_of_safetensors_are_the_format() -> None:
    for count in (1, 2, 99, 12_345):
        vector = np.random.default_rng(count).standard_normal(count).astype(np.float32)
        assert encode_safetensors(vector) == safetensors.numpy.save({"vector": vector})
