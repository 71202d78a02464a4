"""The trainer for any onnxruntime: the portable step, one graph of standard operators.

The model is one flat vector, and the graph's inputs are views of it, so nothing is copied to or
from onnxruntime. A step reads one vector and writes another, and they change places: writing in
place would save one vector, but onnxruntime does not promise that a tensor's readers run before
its writer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_client.trainers import Evaluation, GraphFailedError
from edge_client.trainers.batches import AnyArray, check_batch
from fedtide.bundle import Bundle
from fedtide.errors import BundleError
from fedtide.manifest import INPUT_PREFIX, OUTPUT_PREFIX, Manifest, Tensor
from fedtide.runtime import import_onnxruntime, load_session
from fedtide.vectors import Vector, check_vector, split_vector


class _Side:
    """One of the two places for the model: a flat vector and its tensors as OrtValues."""

    def __init__(self, manifest: Manifest) -> None:
        # Fails here if the model does not fit into memory, before training starts.
        self.vector: Vector = np.zeros(manifest.elements_count, np.float32)
        self.values = {
            name: _shared(view) for name, view in split_vector(self.vector, manifest).items()
        }


class PortableTrainer:
    """See `edge_client.trainers.Trainer`. The evaluation graph is loaded when first used."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Open the training step of `bundle`.

        Raises:
            BundleError: its files are damaged, refused, or do not fit the manifest.
        """
        self._bundle, self._threads = bundle, threads
        self._manifest = manifest = bundle.manifest
        self._train = self._load(manifest.runtimes.portable.train)
        self._evaluate: Any = None
        self._updated = _check_train_graph(self._train, manifest)
        self._sides: tuple[_Side, _Side] | None = None
        self._loss = np.zeros((), np.float32)
        self._correct = np.zeros((), np.int64)
        self._rate = np.zeros((), np.float32)
        self._bindings: list[Any] = []

    def set_parameters(self, vector: Vector) -> None:
        """Replace the model; see `Trainer`."""
        check_vector(vector, self._manifest)
        if self._sides is None:
            self._sides = (_Side(self._manifest), _Side(self._manifest))
            new, old = self._sides
            self._bindings = [self._bind(new, old), self._bind(old, new)]
        # Tensors that no step changes are read from either side.
        for side in self._sides:
            side.vector[:] = vector

    def parameters(self) -> Vector:
        """A copy of the model; see `Trainer`."""
        return self._sides_or_raise()[0].vector.copy()

    def step(self, x: AnyArray, y: AnyArray, learning_rate: float) -> float:
        """One step of plain SGD; see `Trainer`.

        Raises:
            DataError: the batch does not fit the model.
            GraphFailedError: onnxruntime failed.
        """
        current, other = self._sides_or_raise()
        x, y = check_batch(self._manifest, x, y)
        self._rate[()] = learning_rate
        binding = self._bindings[0]
        binding.bind_ortvalue_input("x", _shared(x))
        binding.bind_ortvalue_input("y", _shared(y))
        _run(self._train, binding)
        self._sides = (other, current)
        self._bindings.reverse()
        return float(self._loss)

    def evaluate(self, x: AnyArray, y: AnyArray) -> Evaluation:
        """Loss and correct predictions on one batch; see `Trainer`."""
        current, _ = self._sides_or_raise()
        x, y = check_batch(self._manifest, x, y)
        if self._evaluate is None:
            self._evaluate = self._load(self._manifest.runtimes.portable.evaluate)
            _check_evaluation_graph(self._evaluate, self._manifest)
        binding = self._evaluate.io_binding()
        binding.bind_ortvalue_input("x", _shared(x))
        binding.bind_ortvalue_input("y", _shared(y))
        for tensor in self._manifest.tensors:
            binding.bind_ortvalue_input(INPUT_PREFIX + tensor.name, current.values[tensor.name])
        binding.bind_ortvalue_output("loss", _shared(self._loss))
        classifier = self._manifest.classes is not None
        if classifier:
            binding.bind_ortvalue_output("correct", _shared(self._correct))
        _run(self._evaluate, binding)
        correct = int(self._correct) if classifier else None
        return Evaluation(len(x), float(self._loss) * len(x), correct)

    def close(self) -> None:
        """Release the sessions and the model."""
        self._bindings, self._sides = [], None
        self._train = self._evaluate = None

    def _load(self, path: str) -> Any:
        return load_session(self._bundle.read(path), threads=self._threads)

    def _bind(self, source: _Side, target: _Side) -> Any:
        binding = self._train.io_binding()
        binding.bind_ortvalue_input("lr", _shared(self._rate))
        binding.bind_ortvalue_output("loss", _shared(self._loss))
        for tensor in self._manifest.tensors:
            binding.bind_ortvalue_input(INPUT_PREFIX + tensor.name, source.values[tensor.name])
            if tensor.name in self._updated:
                name = OUTPUT_PREFIX + tensor.name
                binding.bind_ortvalue_output(name, target.values[tensor.name])
        return binding

    def _sides_or_raise(self) -> tuple[_Side, _Side]:
        if self._sides is None:
            raise RuntimeError("the trainer has no model: call set_parameters first")
        return self._sides


def _shared(array: AnyArray) -> Any:
    """An OrtValue over the memory of `array`, which it keeps alive."""
    return import_onnxruntime().OrtValue.ortvalue_from_numpy(array)


def _run(session: Any, binding: Any) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as exc:  # its errors share no base class
        raise GraphFailedError(f"onnxruntime failed in a graph of the bundle: {exc}") from exc


def _check_train_graph(session: Any, manifest: Manifest) -> frozenset[str]:
    """Names of the tensors that a step changes."""
    _check_inputs(session, manifest, ("x", "y", "lr"), "training")
    outputs = {node.name: node for node in session.get_outputs()}
    if "loss" not in outputs:
        raise BundleError("the training graph has no output 'loss'")
    tensors = {OUTPUT_PREFIX + tensor.name: tensor for tensor in manifest.tensors}
    for name, node in outputs.items():
        if name != "loss" and name not in tensors:
            raise BundleError(f"the training graph has an unknown output {name!r}")
        if name in tensors:
            _check_shape(node, tensors[name], "training")
    missing = [t.name for n, t in tensors.items() if t.trainable and n not in outputs]
    if missing:
        raise BundleError(f"the training graph does not update {missing[0]!r}")
    return frozenset(tensors[name].name for name in outputs if name in tensors)


def _check_evaluation_graph(session: Any, manifest: Manifest) -> None:
    _check_inputs(session, manifest, ("x", "y"), "evaluation")
    expected = {"loss"} if manifest.classes is None else {"loss", "correct"}
    outputs = {node.name for node in session.get_outputs()}
    if outputs != expected:
        raise BundleError(f"the evaluation graph has outputs {sorted(outputs)}, not {expected}")


def _check_inputs(session: Any, manifest: Manifest, fixed: tuple[str, ...], graph: str) -> None:
    inputs = {node.name: node for node in session.get_inputs()}
    tensors = {INPUT_PREFIX + tensor.name: tensor for tensor in manifest.tensors}
    expected = {*fixed, *tensors}
    if expected != set(inputs):
        odd = sorted(expected.symmetric_difference(inputs))
        raise BundleError(f"the {graph} graph and the manifest differ in input {odd[0]!r}")
    for name, tensor in tensors.items():
        _check_shape(inputs[name], tensor, graph)


def _check_shape(node: Any, tensor: Tensor, graph: str) -> None:
    if tuple(node.shape) != tensor.shape or node.type != "tensor(float)":
        raise BundleError(
            f"{node.name!r} of the {graph} graph is {node.type} of shape {node.shape}, "
            f"the manifest says float32 of shape {list(tensor.shape)}"
        )
