"""The trainer for `onnxruntime-training-cpu` 1.19.2, where that wheel exists.

Three misuses of its API end the process with a segmentation fault: touching a parameter before a
Module exists, calling a Module in evaluation mode without an evaluation model, and an Optimizer
made while the Module's checkpoint is still nominal (without values). Here no Module ever leaves
training mode, each has values before it has an Optimizer, and nothing touches parameters before.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.trainers import AnyArray, Change
from edge_client.trainers.batches import check_batch
from fedtide.bundle import Bundle
from fedtide.errors import BundleError, ConfigError, GraphFailedError
from fedtide.evaluator import Evaluator, vector_values
from fedtide.manifest import Manifest, OrtTrainingRuntime
from fedtide.measures import Measure, Metrics
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
        self.manifest = manifest = bundle.manifest
        runtime = manifest.runtimes.ort_training
        if runtime is None:
            reason = manifest.runtimes.ort_training_absent_because or "it was not exported"
            raise BundleError(f"the bundle has no artifacts for ort_training: {reason}")
        self._bundle, self._threads = bundle, threads
        self._state, self._module, self._optimizer = _load(bundle, runtime, threads)
        offsets = {t.name: slice(t.offset, t.offset + t.size) for t in manifest.tensors}
        self._slices = [offsets[name] for name in runtime.order]
        trained = [tensor for tensor in manifest.tensors if tensor.kind == "parameter"]
        self._trained = {tensor.name: offsets[tensor.name] for tensor in trained}
        self._statistics = runtime.statistics
        self._evaluator: Evaluator | None = None
        self._values: dict[str, Any] | None = None
        self._gradient: Vector | None = None
        self._pending = False
        self._ready = False
        self._rate: float | None = None

    def set_parameters(self, vector: Vector) -> None:
        """Replace the model; see `Trainer`."""
        check_vector(vector, self.manifest)
        _set(self._module, np.concatenate([vector[part] for part in self._slices]))
        self._module.lazy_reset_grad()
        self._values, self._pending = None, False
        self._ready = True

    def parameters(self) -> Vector:
        """A copy of the model; see `Trainer`."""
        self._check_ready()
        buffer = self._module.get_contiguous_parameters(trainable_only=False).numpy()
        vector = np.empty(self.manifest.elements_count, np.float32)
        at = 0
        for part in self._slices:
            size = part.stop - part.start
            vector[part] = buffer[at : at + size]
            at += size
        return vector

    def step(self, x: AnyArray, y: AnyArray, learning_rate: float, seed: int = 0) -> Measure:
        """One step of plain SGD; see `Trainer`."""
        if self._pending:
            raise RuntimeError("an accumulated gradient waits for `change`")
        if learning_rate != self._rate:
            self._optimizer.set_learning_rate(learning_rate)
            self._rate = learning_rate
        loss = self._run(x, y, seed)
        self._optimizer.step()
        self._module.lazy_reset_grad()
        return loss

    def accumulate(self, x: AnyArray, y: AnyArray, seed: int = 0) -> Measure:
        """Add a gradient; see `Trainer`."""
        loss = self._run(x, y, seed)
        trained = self.manifest.trained
        if self._gradient is None:
            self._gradient = np.empty(trained.stop - trained.start, np.float32)
        if not self._pending:
            self._gradient[:] = 0
        self._pending = True
        for name, part in self._trained.items():
            # Of the mean loss, so that it cannot add up in the module.
            gradient = self._state.parameters[name].grad.reshape(-1)
            target = self._gradient[part.start - trained.start : part.stop - trained.start]
            if loss.weight > 0:
                target += gradient * np.float32(loss.weight)
        self._module.lazy_reset_grad()
        return loss

    def change(self, function: Change) -> None:
        """Apply a gradient; see `Trainer`."""
        vector = self.parameters()
        if not self._pending or self._gradient is None:
            raise RuntimeError("no gradient has been accumulated")
        function(vector[self.manifest.trained], self._gradient)
        self.set_parameters(vector)

    def evaluate(self, x: AnyArray, y: AnyArray) -> Metrics:
        """Measures on one batch; see `Trainer`."""
        self._check_ready()
        x, y = check_batch(self.manifest, x, y)
        if self._evaluator is None:
            self._evaluator = Evaluator(self._bundle, self._threads)
        if self._values is None:
            self._values = vector_values(self.parameters(), self.manifest)
        return self._evaluator.evaluate(self._values, x, y)

    def close(self) -> None:
        """Release the module and its memory."""
        self._ready = False
        self._optimizer = self._module = self._state = None
        self._evaluator = self._values = self._gradient = None

    def _run(self, x: AnyArray, y: AnyArray, seed: int) -> Measure:
        """Forward and backward; gradients are in the module, statistics are updated."""
        self._check_ready()
        x, y = check_batch(self.manifest, x, y)
        seeds = (np.array(seed, np.int64),) if self.manifest.random else ()
        self._values = None
        try:
            loss, weight, *statistics = self._module(x, y, *seeds)
        except Exception as exc:  # its errors share no base class
            raise GraphFailedError(f"onnxruntime.training failed on a batch: {exc}") from exc
        for name, value in zip(self._statistics, statistics, strict=True):
            self._state.parameters[name] = value
        if weight == 0:  # a mean over nothing is no number
            return Measure(0.0, 0.0)
        return Measure(float(loss) * float(weight), float(weight))

    def _check_ready(self) -> None:
        if not self._ready:
            raise RuntimeError("the trainer has no model: call set_parameters first")


def _set(module: Any, buffer: Vector) -> None:
    value = import_onnxruntime().OrtValue.ortvalue_from_numpy(buffer)
    # The inner value: the method rejects the Python wrapper that its signature names.
    module.copy_buffer_to_parameters(value._ortvalue, trainable_only=False)


def _load(bundle: Bundle, runtime: OrtTrainingRuntime, threads: int) -> tuple[Any, Any, Any]:
    """(CheckpointState, Module, Optimizer). The API reads files, so checked bytes become some."""
    if training_package() is None:
        raise ConfigError(
            "onnxruntime.training is not installed here",
            hint="use the portable runtime, or pip install 'fedtide[client-ort-training]'",
        )
    import_onnxruntime()
    api = importlib.import_module("onnxruntime.training.api")
    graphs = (runtime.train, runtime.optimizer)
    with tempfile.TemporaryDirectory(prefix="fedtide-") as folder:
        paths = []
        for index, name in enumerate((*graphs, runtime.checkpoint)):
            raw = bundle.read(name)
            if name in graphs:
                scan_model(raw, extra_domains=ORT_TRAINING_OPERATORS)
            paths.append(Path(folder) / str(index))
            paths[-1].write_bytes(raw)
        train, optimizer, checkpoint = map(str, paths)
        try:
            state = api.CheckpointState.load_checkpoint(checkpoint)
            options = session_options(threads)
            module = api.Module(train, state, session_options=options)
            _check_ports(module, bundle.manifest, runtime)
            _set(module, np.zeros(bundle.manifest.elements_count, np.float32))
            return state, module, api.Optimizer(optimizer, module)
        except BundleError:
            raise
        except Exception as exc:  # its errors share no base class
            raise BundleError(f"onnxruntime.training refuses the artifacts: {exc}") from exc


def _check_ports(module: Any, manifest: Manifest, runtime: OrtTrainingRuntime) -> None:
    size = module.get_parameters_size(False)
    if size != manifest.elements_count:
        raise BundleError(
            f"the training artifacts have {size:,} values, the manifest {manifest.elements_count:,}"
        )
    inputs = ["x", "y", "seed"] if manifest.random else ["x", "y"]
    outputs = 2 + len(runtime.statistics)
    if module.input_names() != inputs or len(module.output_names()) != outputs:
        raise BundleError(
            f"the training artifacts have inputs {module.input_names()} and outputs "
            f"{module.output_names()}, the manifest says {inputs} and {outputs} outputs"
        )
