"""Export: refusals, verification that catches planted errors, the files it writes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import safetensors.numpy  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

import tests.models as models  # noqa: E402
from edge_client.fingerprint import start_near  # noqa: E402
from edge_client.trainers.opening import available_runtimes, open_trainer  # noqa: E402
from edge_client.training import train  # noqa: E402
from export import ModelSpec, verification  # noqa: E402
from export.command import load_function  # noqa: E402
from export.exporting import export_bundle  # noqa: E402
from export.inspection import inspect_model  # noqa: E402
from export.ort_artifacts import OrtArtifacts  # noqa: E402
from export.portable_step import train_graph  # noqa: E402
from export.rewrites import embedding  # noqa: E402
from fedtide import cli  # noqa: E402
from fedtide.bundle import open_bundle_dir  # noqa: E402
from fedtide.errors import ConfigError, ExportError  # noqa: E402
from fedtide.onnx_scan import scan_model  # noqa: E402
from fedtide.plan import Plan  # noqa: E402
from fedtide.runtime import load_session  # noqa: E402
from fedtide.safetensors import read_initial_model  # noqa: E402
from fedtide.vectors import whole_vector  # noqa: E402


def spec_of(
    *layers: nn.Module, shape: tuple[int, ...] = (1, 8, 8), loss: Any = "cross_entropy"
) -> ModelSpec:
    return ModelSpec(nn.Sequential(*layers), torch.zeros(1, *shape), loss)


def export(spec: object, out: Path, **options: Any) -> Any:
    return export_bundle(spec, out, name="test", ort_training=False, **options)


HEAD = (nn.Flatten(), nn.LazyLinear(10))


def test_bundle_is_complete_and_verified(tmp_path: Path) -> None:
    stages: list[str] = []
    out = tmp_path / "bundle"
    exported = export_bundle(models.tiny_cnn(), out, name="tiny", progress=stages.append)
    assert exported.verified == available_runtimes()
    bundle = open_bundle_dir(out)
    assert bundle.digest == exported.bundle.digest
    for name in bundle.manifest.files:
        bundle.read(name)
    on_disk = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert on_disk == {*bundle.manifest.files, "manifest.json"}
    assert list(tmp_path.iterdir()) == [out]
    assert stages[-1] == f"verifying runtime {exported.verified[-1]} against PyTorch"
    vector = safetensors.numpy.load(bundle.read(bundle.manifest.initial_model))["vector"]
    state = models.tiny_cnn().module.state_dict()
    for tensor in bundle.manifest.tensors:
        part = vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
        np.testing.assert_array_equal(part, state[tensor.name].numpy())


def test_graphs_are_plain_and_small(tmp_path: Path) -> None:
    bundle = export(models.tiny_cnn(), tmp_path / "b").bundle
    for path in (
        bundle.manifest.runtimes.portable.train,
        bundle.manifest.runtimes.portable.evaluate,
    ):
        raw = bundle.read(path)
        assert {domain for domain, _ in scan_model(raw).operators} == {""}
        assert scan_model(raw).initializer_elements < 690, "the model has as many weights"
        model = onnx.load_from_string(raw)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version <= 10
        assert [entry.version for entry in model.opset_import] == [18]
        assert not model.metadata_props
        assert b"/export/" not in raw


def test_inference_graph_is_the_module(tmp_path: Path) -> None:
    spec = models.tiny_cnn()
    bundle = export(spec, tmp_path / "b").bundle
    raw = bundle.read(bundle.manifest.inference)
    session = load_session(raw)
    for batch in (1, 4):
        x = torch.randn(batch, 1, 8, 8)
        expected = spec.module(x).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-5)
    stored = {tensor.name: tensor for tensor in onnx.load_from_string(raw).graph.initializer}
    for name, value in spec.module.state_dict().items():
        np.testing.assert_array_equal(numpy_helper.to_array(stored[name]), value.numpy())


def test_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = {export(models.tiny_cnn(), tmp_path / name).bundle.digest for name in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize("opset", [18, 21])
def test_other_layers_of_the_family(opset: int, tmp_path: Path) -> None:
    spec = spec_of(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 8, 2, groups=2, dilation=2, padding="same"),
        nn.MaxPool2d(2, ceil_mode=False),
        nn.Conv2d(8, 8, 1),
        nn.MaxPool2d(2, stride=1, padding=1),
        nn.Flatten(),
        nn.Linear(72, 5),
        shape=(2, 9, 11),
    )
    module: Any = spec.module
    with torch.no_grad():
        features = module[:-1](torch.zeros(1, 2, 9, 11)).shape[1]
    module[-1] = nn.Linear(features, 5)
    assert export(spec, tmp_path / "b", opset=opset).verified == ("portable",)


def test_frozen_parameters_and_buffers_stay(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
            self.first.requires_grad_(False)
            self.register_buffer("scale", torch.full((4,), 0.5))
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0, 0.0]))

        def forward(self, x: Any) -> Any:
            seen = torch.softmax(x + self.mask, -1)
            return self.last(torch.relu(self.first(seen * self.scale)))

    spec = ModelSpec(Scaled(), torch.zeros(1, 4), "mse")
    exported = export_bundle(spec, tmp_path / "b", name="scaled")
    manifest = exported.bundle.manifest
    assert [(tensor.name, tensor.kind) for tensor in manifest.tensors] == [
        ("last.weight", "parameter"),
        ("last.bias", "parameter"),
        ("first.weight", "frozen"),
        ("first.bias", "frozen"),
        ("scale", "frozen"),
        ("mask", "frozen"),
    ]
    assert manifest.shared_count == 14
    assert manifest.rest is not None
    whole = whole_vector(np.zeros(14, np.float32), exported.bundle)
    np.testing.assert_array_equal(whole[-8:], [0.5, 0.5, 0.5, 0.5, 0, -np.inf, 0, 0])


class Unreached(nn.Module):
    """A layer that nobody asks, and a scale that is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = nn.Linear(4, 6), nn.Linear(6, 3)
        self.head, self.scale = nn.Linear(6, 2), nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x: Any) -> Any:
        return self.head(torch.tanh(self.body(x)) * self.scale.detach())


def test_what_the_loss_does_not_reach_stays_as_torch_optim_leaves_it(tmp_path: Path) -> None:
    torch.manual_seed(8)
    module, stages = Unreached(), list[str]()
    spec = ModelSpec(module, torch.zeros(1, 4), "mse")
    exported = export_bundle(spec, tmp_path / "b", name="m", progress=stages.append)
    manifest = exported.bundle.manifest
    frozen = {tensor.name for tensor in manifest.tensors if tensor.kind == "frozen"}
    assert frozen == {"scale", "spare.weight", "spare.bias"}
    assert manifest.shared_count == 4 * 6 + 6 + 6 * 2 + 2
    assert "freezing what the loss does not reach: scale and 2 more" in stages
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.5)
    trainer = open_trainer(exported.bundle, "portable")
    trainer.set_parameters(read_initial_model(exported.bundle))
    plan = Plan(batch_size="all", learning_rate=0.1, weight_decay=0.5, epochs=3)
    for _ in range(plan.epochs):
        optimizer.zero_grad()
        loss: Any = nn.functional.mse_loss(module(x), y)
        loss.backward()
        optimizer.step()
    train(trainer, x.numpy(), y.numpy(), plan)
    state = module.state_dict()
    expected = torch.cat([state[tensor.name].reshape(-1) for tensor in manifest.tensors])
    np.testing.assert_allclose(trainer.parameters(), expected, atol=1e-6)


def test_a_loss_that_depends_on_no_parameter_is_refused(tmp_path: Path) -> None:
    class Constant(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x).detach()

    spec = ModelSpec(Constant(4, 2), torch.zeros(1, 4), "mse")
    with pytest.raises(ExportError, match="depends on no parameter of the model, such as 'weight'"):
        export(spec, tmp_path / "b")
    spec = ModelSpec(Unreached(), torch.zeros(1, 4), "mse", local=["body.*", "head.*"])
    with pytest.raises(ExportError, match="nothing of the model would travel"):
        export(spec, tmp_path / "b")


class Normalised(nn.Module):
    """A batch normalisation and dropout before a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(64, 3))

    def forward(self, x: Any) -> Any:
        return self.head(torch.relu(self.bn(self.conv(x))))


def normalised(**options: Any) -> ModelSpec:
    torch.manual_seed(4)
    return ModelSpec(Normalised(), torch.zeros(1, 1, 4, 4), "cross_entropy", **options)


def test_statistics_are_averaged_or_kept(tmp_path: Path) -> None:
    manifest = export_bundle(normalised(), tmp_path / "a", name="a").bundle.manifest
    assert [t.name for t in manifest.tensors][:2] == ["bn.running_mean", "bn.running_var"]
    assert manifest.shared_count == manifest.elements_count
    assert not manifest.additive, "examples of a batch see each other"
    assert manifest.random
    kept = export(normalised(local=["bn.*"]), tmp_path / "b").bundle.manifest
    parts = [(t.name, t.kind, t.shared) for t in kept.tensors]
    assert parts[-4:] == [
        ("bn.weight", "parameter", False),
        ("bn.bias", "parameter", False),
        ("bn.running_mean", "statistic", False),
        ("bn.running_var", "statistic", False),
    ]
    assert kept.elements_count - kept.shared_count == 16
    assert kept.trained == slice(0, kept.shared_count + 8)


def test_the_silent_batch_norm_of_the_exporter_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch.onnx turns a training batch norm into an inference one, without a word."""
    from export.decompositions import aten, decomposition_table

    def without_batch_norm() -> dict[Any, Any]:
        table = decomposition_table()
        for name in ("native_batch_norm", "_native_batch_norm_legit_functional"):
            table.pop(getattr(aten, name).default, None)
        return table

    monkeypatch.setattr("export.graphs.decomposition_table", without_batch_norm)
    monkeypatch.setattr("export.exporting.train_graph", partial(train_graph, rewrites=()))
    with pytest.raises(ExportError, match=r"verification: runtime portable|batch_norm"):
        export(normalised(), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    def changed(model: Any, opset: int, **options: Any) -> Any:
        graph = train_graph(model, opset, **options)
        change(graph.graph)
        return graph

    monkeypatch.setattr("export.exporting.train_graph", changed)


def test_planted_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def scale_one_update(graph: Any) -> None:
        node = next(n for n in graph.node if "new.0.weight" in n.output)
        node.output[0] = "almost"
        graph.initializer.append(numpy_helper.from_array(np.array(1.001, np.float32), "factor"))
        graph.node.append(onnx.helper.make_node("Mul", ["almost", "factor"], ["new.0.weight"]))

    plant(monkeypatch, scale_one_update)
    with pytest.raises(ExportError, match=r"portable.*step 1.*'0\.weight'"):
        export(models.tiny_mlp(), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_planted_wrong_tie_in_pooling_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def every_tie(*args: Any) -> Any:
        grad, x = args[0], args[1]
        y = torch.nn.functional.max_pool2d(x, 2)
        up = torch.repeat_interleave(torch.repeat_interleave(y, 2, -1), 2, -2)
        g = torch.repeat_interleave(torch.repeat_interleave(grad, 2, -1), 2, -2)
        return torch.where(x == up, g, 0.0)

    from export.decompositions import aten, decomposition_table

    table = decomposition_table()
    table[aten.max_pool2d_with_indices_backward.default] = every_tie
    monkeypatch.setattr("export.graphs.decomposition_table", lambda: table)
    monkeypatch.setattr("export.exporting.train_graph", partial(train_graph, rewrites=()))
    with pytest.raises(ExportError, match="differs from"):
        export(models.tiny_cnn(), tmp_path / "b")


def test_right_results_are_compared_where_pytorch_is_sure() -> None:
    """At this network's first start an activation is so near to zero that rounding decides."""
    torch.manual_seed(3)
    resnet, _ = load_function("examples.models.resnet:resnet")
    model = inspect_model(resnet(), "resnet")
    first = verification._expected(
        model, start_near(verification._flat(model.values()), model.tensors, 0), 0
    )
    assert verification._unsteadiness(model, first) > 1
    assert verification._unsteadiness(model, verification.compute_expected(model)) < 0.25


class Padded(nn.Module):
    """Tokens [b,6] -> logits [b,3]; token 0 fills up short texts and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, padding_idx=0)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.table(tokens).sum(1))


@pytest.mark.skipif("ort_training" not in available_runtimes(), reason="no training wheel")
def test_padding_rows_are_for_the_portable_runtime(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """onnxruntime.training differentiates a graph by itself, and would train the padding row."""
    spec = ModelSpec(Padded(), torch.full((1, 6), 8), "cross_entropy")
    runtimes = export_bundle(spec, tmp_path / "b", name="test").bundle.manifest.runtimes
    assert runtimes.ort_training is None
    assert "padding row" in str(runtimes.ort_training_absent_because)
    monkeypatch.setattr(embedding, "has_constant_row", lambda _: False)
    with pytest.raises(ExportError, match=r"'table.weight' differs from PyTorch.* at index [0-3],"):
        export_bundle(spec, tmp_path / "c", name="test")


@pytest.mark.skipif("ort_training" not in available_runtimes(), reason="no training wheel")
def test_planted_wrong_buffer_order_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from export.ort_artifacts import make_ort_artifacts

    def swapped(model: Any, opset: int) -> Any:
        artifacts = make_ort_artifacts(model, opset)
        assert isinstance(artifacts, OrtArtifacts)
        return dataclasses.replace(artifacts, order=artifacts.order[::-1])

    monkeypatch.setattr("export.exporting.make_ort_artifacts", swapped)
    with pytest.raises(ExportError, match="runtime ort_training"):
        export_bundle(models.tiny_mlp(), tmp_path / "b", name="test")


def test_missing_artifacts_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("export.ort_artifacts.training_package", lambda: None)
    exported = export_bundle(models.tiny_mlp(), tmp_path / "b", name="test")
    reason = exported.bundle.manifest.runtimes.ort_training_absent_because
    assert reason is not None
    assert "not installed" in reason


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.layer(x), x


class Counting(nn.Module):
    calls: Any

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.layer(x) * self.calls


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.layer(x + torch.randn_like(x))


class Fixed(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.reshape(3, 64)


def linear_on(device: str) -> ModelSpec:
    return ModelSpec(nn.Linear(4, 2, device=device), torch.zeros(1, 4), "mse")


def linear(**options: Any) -> ModelSpec:
    return ModelSpec(nn.Linear(4, 2), torch.zeros(1, 4), **{"loss": "mse", **options})


FLAT = (nn.Flatten(), nn.Linear(64, 10))
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "not a spec": (lambda: nn.Linear(1, 1), "returned Linear"),
    "unknown loss": (lambda: spec_of(*FLAT, loss="hinge"), "'hinge', which is none of"),
    "loss of a foreign kind": (lambda: linear(loss=7), "loss is int"),
    "no labels": (lambda: linear(loss=lambda o, y: (o - y).abs().mean()), "example_labels"),
    "vector loss": (
        lambda: linear(loss=lambda o, y: o - y, example_labels=torch.zeros(1, 2)),
        r"returned \(3, 2\), expected a mean",
    ),
    "failing loss": (
        lambda: linear(loss=lambda o, y: 1 / 0, example_labels=torch.zeros(1, 2)),
        "division by zero",
    ),
    "infinite loss": (
        lambda: linear(loss=lambda o, y: (o.log() - y).sum(1), example_labels=torch.zeros(1, 2)),
        "loss in PyTorch is nan",
    ),
    "flattened loss": (
        lambda: linear(loss=lambda o, y: (o - y).abs().flatten(), example_labels=torch.zeros(1, 2)),
        r"returned \(6,\), expected a mean",
    ),
    "no gradient": (
        lambda: linear(
            loss=lambda o, y: (o.detach() - y).abs().mean(), example_labels=torch.zeros(1, 2)
        ),
        "no gradient",
    ),
    "loss with parameters": (
        lambda: linear(loss=nn.Sequential(nn.Linear(2, 2))),
        "has parameters to train",
    ),
    "metrics": (lambda: linear(metrics=None), "metrics is NoneType"),
    "local as text": (lambda: linear(local="bn*"), "expected a list of patterns"),
    "long name": (lambda: linear(name="n" * 500), "500 characters"),
    "fixed batch": (lambda: spec_of(Fixed(), nn.Linear(64, 10)), r"x\.shape\[0\] or -1"),
    "without values": (lambda: linear_on("meta"), "'meta'"),
    "partly evaluating": (lambda: spec_of(nn.BatchNorm2d(1).eval(), *FLAT), "evaluation mode"),
    "metric's name": (lambda: linear(metrics={"loss": torch.dist}), "a metric is called 'loss'"),
    "local": (lambda: linear(local=["bn*"]), "matches no parameter"),
    "all local": (lambda: linear(local=["*"]), "nothing of the model would travel"),
    "random": (lambda: ModelSpec(Noisy(), torch.zeros(1, 4), "mse"), r"\(Noisy\).*random"),
    "cumulative": (
        lambda: spec_of(nn.BatchNorm2d(1, momentum=None), *FLAT),
        r"0 \(BatchNorm2d\): momentum=None",
    ),
    "tuple": (lambda: ModelSpec(TwoOutputs(), torch.zeros(1, 4), "mse"), "returns tuple"),
    "buffer": (lambda: ModelSpec(Counting(), torch.zeros(1, 4), "mse"), "'calls'.*changes"),
    "float64": (
        lambda: spec_of(*FLAT).__class__(nn.Linear(4, 2).double(), torch.zeros(1, 4), "mse"),
        "float64",
    ),
    "no parameters": (lambda: spec_of(nn.ReLU(), loss="mse"), "no trainable parameter"),
    "output shape": (lambda: spec_of(*FLAT[:1], nn.Linear(64, 1)), "at least 2 classes"),
    "input shape": (lambda: spec_of(*FLAT, shape=(1, 9, 9)), "failed on inputs"),
    "scalar": (lambda: ModelSpec(nn.Linear(4, 2), torch.tensor(1.0), "mse"), "batch dimension"),
    "double inputs": (
        lambda: ModelSpec(nn.Linear(4, 2), torch.zeros(1, 4).double(), "mse"),
        "float64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ExportError, match=message):
        export(make(), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_untranslatable_operator_is_named_with_its_place(tmp_path: Path) -> None:
    class Determinant(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.det(x.reshape(-1, 8, 8)).reshape(-1, 1)

    spec = spec_of(nn.Sequential(nn.Conv2d(1, 1, 1), Determinant()), nn.Linear(1, 3))
    with pytest.raises(ExportError, match=r"0\.1 \(Determinant\).*linalg"):
        export(spec, tmp_path / "b")


def test_own_losses_and_metrics_take_any_batch(tmp_path: Path) -> None:
    spec = linear(
        loss=lambda o, y: ((o - y) ** 2).sum(1),
        example_labels=torch.randn(4, 2),
        metrics={"far": lambda o, y: ((o - y).abs() > 1).float().mean()},
    )
    manifest = export(spec, tmp_path / "b").bundle.manifest
    assert manifest.metrics == ("far",)
    assert manifest.additive


def test_values_without_their_indices(tmp_path: Path) -> None:
    """TopK has two outputs, whoever looks at them."""

    class Largest(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.topk(3, dim=1).values

    spec = spec_of(nn.Flatten(), nn.Linear(64, 8), Largest())
    assert export(spec, tmp_path / "b").verified == ("portable",)


def test_the_command_says_that_it_made_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "tests.models:tiny_regression", "--runtime", "portable", "--out"]
    for out, said in (("new/b", "/new/b, in the new folder "), ("new/c", "/new/c: ")):
        assert cli.main([*words, str(tmp_path / out)]) == 0
        assert said in capsys.readouterr().err


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="holds no bundle"):
        export(models.tiny_mlp(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="not a directory"):
        export(models.tiny_mlp(), tmp_path / "thesis.txt")


def test_a_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "b"
    export(models.tiny_cnn(), out)
    notes = out / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(ConfigError, match="which is no part of the bundle"):
        export(models.tiny_mlp(), out)
    assert notes.read_text() == "mine"
    notes.unlink()
    export(models.tiny_mlp(), out)
    assert list(tmp_path.iterdir()) == [out]


def test_functions_are_found_by_file_and_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "my_fedtide_model.py"
    file.write_text("def build():\n    return 7\nvalue = 3\n")
    function, name = load_function(f"{file}:build")
    assert (function(), name) == (7, "build")
    assert load_function("export.models.fedavg:mnist_2nn")[1] == "mnist_2nn"
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for target, error, message in (
        (f"{file}:missing", ConfigError, "no function 'missing'"),
        (f"{file}:value", ConfigError, "no function"),
        (f"{file}", ConfigError, "names no function"),
        ("nowhere.py:build", ConfigError, "no file"),
        ("no_such_module_here:build", ConfigError, "cannot be imported"),
        (f"{tmp_path / 'broken.py'}:build", ExportError, "ZeroDivisionError"),
    ):
        with pytest.raises(error, match=message):
            load_function(target)
