"""The whole way from a ModelSpec to a verified bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_client.recorded_steps import encode_recorded_steps
from export.estimates import estimate
from export.fingerprint import record
from export.inspection import Model, inspect_model
from export.ort_artifacts import OrtArtifacts, make_ort_artifacts
from export.portable_step import evaluation_graph, inference_graph, train_graph
from export.reference import freeze_unreached, is_additive
from export.verification import compute_expected, verify_bundle
from export.writer import check_target, replacing, write_files
from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.manifest import (
    MANIFEST_NAME,
    Estimates,
    File,
    Manifest,
    OrtTrainingRuntime,
    PortableRuntime,
    Runtimes,
    encode_manifest,
)
from fedtide.safetensors import encode_safetensors
from fedtide.vectors import Vector

DEFAULT_OPSET = 18
Progress = Callable[[str], None]

_PORTABLE = PortableRuntime("portable/train.onnx", "portable/evaluate.onnx")
_ORT = {
    "train": "ort_training/training_model.onnx",
    "optimizer": "ort_training/optimizer_model.onnx",
    "checkpoint": "ort_training/checkpoint",
}
_INITIAL, _REST, _INFERENCE = "initial.safetensors", "rest.f32", "inference.onnx"
_VERIFICATION = "verification.npz"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    bundle: Bundle
    verified: tuple[str, ...]
    """Runtimes that computed what PyTorch does."""


def export_bundle(
    spec: object,
    out: Path,
    *,
    name: str,
    opset: int = DEFAULT_OPSET,
    ort_training: bool = True,
    progress: Progress = lambda _: None,
) -> Exported:
    """Export, verify, and write `spec` to the directory `out`; `progress` names each stage.

    Raises:
        ExportError: the model cannot be exported, or a runtime computes something else.
        ConfigError: `out` holds something else, or cannot be written.
        StateError: the disk is full or failing.
    """
    check_target(out)
    progress("inspecting the model")
    model, unreached = freeze_unreached(inspect_model(spec, name))
    if unreached:
        others = f" and {len(unreached) - 1} more" if len(unreached) > 1 else ""
        progress(f"freezing what the loss does not reach: {unreached[0]}{others}")
    model = replace(model, additive=is_additive(model))
    train = train_graph(model, opset, progress=progress)
    progress("tracing and translating evaluation and inference")
    evaluate = evaluation_graph(model, opset)
    inference = inference_graph(model, opset)
    artifacts: OrtArtifacts | str = "it was not asked for"
    if ort_training:
        progress("making artifacts for onnxruntime.training")
        artifacts = make_ort_artifacts(model, opset)
    progress("computing the same steps in PyTorch")
    expected = compute_expected(model)
    estimates = estimate(model, train)
    vector = _initial_vector(model)
    contents = {
        _PORTABLE.train: train.SerializeToString(deterministic=True),
        _PORTABLE.evaluate: evaluate.SerializeToString(deterministic=True),
        _INFERENCE: inference.SerializeToString(deterministic=True),
        _INITIAL: encode_safetensors(vector),
        _VERIFICATION: encode_recorded_steps(record(model, expected)),
    }
    if model.shared_count < len(vector):
        contents[_REST] = vector[model.shared_count :].tobytes()
    if isinstance(artifacts, OrtArtifacts):
        contents |= {path: getattr(artifacts, key) for key, path in _ORT.items()}
    with replacing(out) as staging:
        files = write_files(staging, contents)
        manifest = encode_manifest(_manifest(model, opset, artifacts, files, estimates))
        write_files(staging, {MANIFEST_NAME: manifest})
        verified = verify_bundle(expected, open_bundle_dir(staging), progress)
    return Exported(open_bundle_dir(out), verified)


def _initial_vector(model: Model) -> Vector:
    vector = np.concatenate([value.numpy().reshape(-1) for value in model.values()])
    return vector.astype("<f4")


def _manifest(
    model: Model,
    opset: int,
    artifacts: OrtArtifacts | str,
    files: dict[str, File],
    estimates: Estimates,
) -> Manifest:
    if isinstance(artifacts, OrtArtifacts):
        statistics = tuple(t.name for t in model.tensors if t.kind == "statistic")
        ort = OrtTrainingRuntime(**_ORT, order=artifacts.order, statistics=statistics)
        runtimes = Runtimes(_PORTABLE, ort)
    else:
        runtimes = Runtimes(_PORTABLE, ort_training_absent_because=artifacts)
    return Manifest(
        format_version=2,
        name=model.name,
        tensors=model.tensors,
        inputs=model.inputs,
        labels=model.labels,
        classes=model.classes,
        ignored_label=None if model.classes is None else model.loss.ignored_label,
        loss=model.loss.name,
        metrics=tuple(model.metrics),
        optimizers=("sgd", "adamw"),
        additive=model.additive,
        random=model.random,
        opset=opset,
        runtimes=runtimes,
        initial_model=_INITIAL,
        rest=_REST if _REST in files else None,
        inference=_INFERENCE,
        files=files,
        verification=_VERIFICATION,
        estimates=estimates,
    )
