"""The trainer for `onnxruntime-training-cpu` 1.19.2, where that wheel exists.

Three misuses of its API end the process with a segmentation fault: touching a parameter before a
Module exists, calling a Module in evaluation mode without an evaluation model, and an Optimizer
made while the Module's checkpoint is still nominal (without values). Here every Module has both
models, has values before it has an Optimizer, and nothing else touches parameters.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.trainers import Evaluation
from edge_client.trainers.batches import AnyArray, check_batch
from fedtide.bundle import Bundle
from fedtide.errors import BundleError, ConfigError
from fedtide.manifest import OrtTrainingRuntime
from fedtide.onnx_scan import ORT_TRAINING_OPERATORS, scan_model
from fedtide.runtime import import_onnxruntime, session_options, training_package
from fedtide.vectors import Vector, check_vector


class OrtTrainingTrainer:
    """See `edge_client.trainers.Trainer`."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Open the artifacts of `bundle`.

        Raises:
            BundleError: they are absent, damaged, refused, or do not fit the manifest.
            ConfigError: `onnxruntime.training` is not installed.
        """
        self._manifest = manifest = bundle.manifest
        runtime = manifest.runtimes.ort_training
        if runtime is None:
            reason = manifest.runtimes.ort_training_absent_because or "it was not exported"
            raise BundleError(f"the bundle has no artifacts for ort_training: {reason}")
        self._module, self._optimizer = _load(bundle, runtime, threads)
        offsets = {
            tensor.name: slice(tensor.offset, tensor.offset + tensor.size)
            for tensor in manifest.tensors
        }
        self._slices = [offsets[name] for name in runtime.order]
        size = self._module.get_parameters_size(False)
        if size != manifest.elements_count:
            raise BundleError(
                f"the training artifacts have {size:,} values, the manifest "
                f"{manifest.elements_count:,}"
            )
        self._ready = False
        self._rate: float | None = None

    def set_parameters(self, vector: Vector) -> None:
        """Replace the model; see `Trainer`."""
        check_vector(vector, self._manifest)
        buffer = np.concatenate([vector[part] for part in self._slices])
        _set(self._module, buffer)
        self._ready = True

    def parameters(self) -> Vector:
        """A copy of the model; see `Trainer`."""
        self._check_ready()
        buffer = self._module.get_contiguous_parameters(trainable_only=False).numpy()
        vector = np.empty(self._manifest.elements_count, np.float32)
        at = 0
        for part in self._slices:
            size = part.stop - part.start
            vector[part] = buffer[at : at + size]
            at += size
        return vector

    def step(self, x: AnyArray, y: AnyArray, learning_rate: float) -> float:
        """One step of plain SGD; see `Trainer`."""
        self._check_ready()
        x, y = check_batch(self._manifest, x, y)
        if learning_rate != self._rate:
            self._optimizer.set_learning_rate(learning_rate)
            self._rate = learning_rate
        self._module.train()
        loss = _first(self._module(x, y))
        self._optimizer.step()
        self._module.lazy_reset_grad()
        return float(loss)

    def evaluate(self, x: AnyArray, y: AnyArray) -> Evaluation:
        """Loss and correct predictions on one batch; see `Trainer`."""
        self._check_ready()
        x, y = check_batch(self._manifest, x, y)
        self._module.eval()
        loss, output = self._module(x, y)
        correct = None
        if self._manifest.classes is not None:
            correct = int((output.argmax(axis=1) == y).sum())
        return Evaluation(len(x), float(loss) * len(x), correct)

    def close(self) -> None:
        """Release the module and its memory."""
        self._ready = False
        self._optimizer = self._module = None

    def _check_ready(self) -> None:
        if not self._ready:
            raise RuntimeError("the trainer has no model: call set_parameters first")


def _set(module: Any, buffer: Vector) -> None:
    value = import_onnxruntime().OrtValue.ortvalue_from_numpy(buffer)
    # The inner value: the method rejects the Python wrapper that its signature names.
    module.copy_buffer_to_parameters(value._ortvalue, trainable_only=False)


def _first(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _load(bundle: Bundle, runtime: OrtTrainingRuntime, threads: int) -> tuple[Any, Any]:
    """(Module, Optimizer). The API reads files only, so the checked bytes become some."""
    if training_package() is None:
        raise ConfigError(
            "onnxruntime.training is not installed here",
            hint="use the portable runtime, or pip install 'fedtide[client-ort-training]'",
        )
    import_onnxruntime()
    api = importlib.import_module("onnxruntime.training.api")
    graphs = (runtime.train, runtime.evaluate, runtime.optimizer)
    with tempfile.TemporaryDirectory(prefix="fedtide-") as folder:
        paths = []
        for index, name in enumerate((*graphs, runtime.checkpoint)):
            raw = bundle.read(name)
            if name in graphs:
                scan_model(raw, extra_domains=ORT_TRAINING_OPERATORS)
            paths.append(Path(folder) / str(index))
            paths[-1].write_bytes(raw)
        train, evaluate, optimizer, checkpoint = map(str, paths)
        try:
            state = api.CheckpointState.load_checkpoint(checkpoint)
            options = session_options(threads)
            module = api.Module(train, state, evaluate, session_options=options)
            _set(module, np.zeros(bundle.manifest.elements_count, np.float32))
            return module, api.Optimizer(optimizer, module)
        except Exception as exc:  # its errors share no base class
            raise BundleError(f"onnxruntime.training refuses the artifacts: {exc}") from exc
