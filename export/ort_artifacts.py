"""Artifacts for `onnxruntime.training`, made in a sub-process that may die."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from export.inspection import Model, module_label
from export.portable_step import loss_graph
from fedtide.errors import BundleError, ExportError
from fedtide.launch import module_command, module_environment
from fedtide.onnx_scan import ORT_TRAINING_OPERATORS, scan_model
from fedtide.runtime import training_package

_SECONDS_MAX = 600


@dataclass(frozen=True)
class OrtArtifacts:
    """The content of the four files, and the tensors' order in onnxruntime's buffer."""

    train: bytes
    optimizer: bytes
    checkpoint: bytes
    order: tuple[str, ...]


def make_ort_artifacts(model: Model, opset: int) -> OrtArtifacts | str:
    """The artifacts, or in one sentence why there are none.

    Some operators abort the process that generates their gradients, so another one does it; its
    output, hundreds of lines from C++, is kept for a failure only.
    """
    if training_package() is None:
        return "onnxruntime-training-cpu is not installed where the bundle was exported"
    for path, part in model.module.named_modules():
        if isinstance(part, nn.RNNBase):
            # Unrolled over time it would be thousands of nodes, and several times slower.
            return f"{module_label(model.module, path)} is recurrent"
    try:
        loss = loss_graph(model, opset)
    except ExportError as exc:
        return str(exc.args[0])
    with tempfile.TemporaryDirectory(prefix="fedtide-export-") as name:
        folder = Path(name)
        (folder / "forward.onnx").write_bytes(loss.SerializeToString())
        task = {
            "parameters": [t.name for t in model.tensors if t.kind == "parameter"],
            "others": [t.name for t in model.tensors if t.kind != "parameter"],
            "outputs": [value.name for value in loss.graph.output[1:]],
        }
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        problem = _run_worker(folder)
        if problem is not None:
            return problem
        artifacts = OrtArtifacts(
            train=(folder / "training_model.onnx").read_bytes(),
            optimizer=(folder / "optimizer_model.onnx").read_bytes(),
            checkpoint=(folder / "nominal_checkpoint").read_bytes(),
            order=tuple(json.loads((folder / "order.json").read_text(encoding="utf-8"))),
        )
    return _refusal(model, artifacts) or artifacts


def _run_worker(folder: Path) -> str | None:
    try:
        done = subprocess.run(
            module_command("export.ort_worker", str(folder)),
            env=module_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"onnxruntime.training took more than {_SECONDS_MAX} s"
    if done.returncode < 0:
        return f"onnxruntime.training aborted on this model (signal {-done.returncode})"
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"onnxruntime.training refused this model: {lines[-1] if lines else 'no message'}"
    return None


def _refusal(model: Model, artifacts: OrtArtifacts) -> str | None:
    if sorted(artifacts.order) != sorted(tensor.name for tensor in model.tensors):
        return "onnxruntime.training did not keep the model's tensors as parameters"
    try:
        for raw in (artifacts.train, artifacts.optimizer):
            scan_model(raw, extra_domains=ORT_TRAINING_OPERATORS)
    except BundleError as exc:
        return f"devices would refuse the artifacts: {exc}"
    return None
