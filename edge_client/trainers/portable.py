"""The trainer for any onnxruntime: the portable step, one graph of standard operators.

The model is a flat vector, and the graph's inputs are views of it, so nothing is copied to or from
onnxruntime. The graph never writes where it reads: onnxruntime does not promise that a tensor's
readers run before its writer. So there are two places for the model that change roles, and a third
vector where gradients are accumulated; those that a plan does not need are never made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_client.trainers import AnyArray, Change
from edge_client.trainers.batches import check_batch
from fedtide.bundle import Bundle
from fedtide.evaluator import Evaluator, run_bound, shared_value
from fedtide.manifest import BASE_PREFIX, INPUT_PREFIX, OUTPUT_PREFIX, Tensor
from fedtide.measures import Measure, Metrics
from fedtide.ports import check_train_ports
from fedtide.runtime import load_session
from fedtide.vectors import Vector, check_vector


class _Place:
    """Room for some neighbouring tensors: a vector, and its tensors as OrtValues."""

    def __init__(self, tensors: list[Tensor]) -> None:
        # Fails here if the model does not fit into memory, before training starts.
        self.vector: Vector = np.zeros(sum(tensor.size for tensor in tensors), np.float32)
        self.values: dict[str, Any] = {}
        for tensor in tensors:
            start = tensor.offset - tensors[0].offset
            view = self.vector[start : start + tensor.size].reshape(tensor.shape)
            self.values[tensor.name] = shared_value(view)


class _Bound:
    """A binding, and the batch that it is bound to."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self._batch: dict[str, AnyArray] = {}

    def see(self, name: str, array: AnyArray) -> None:
        """Bind an input to `array`, unless it is the same as before, whatever it holds now."""
        if self._batch.get(name) is not array:
            self.binding.bind_ortvalue_input(name, shared_value(array))
            self._batch[name] = array


class PortableTrainer:
    """See `edge_client.trainers.Trainer`. The evaluation graph is loaded when first used."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Open the training step of `bundle`.

        Raises:
            BundleError: its files are damaged, refused, or do not fit the manifest.
        """
        self.manifest = manifest = bundle.manifest
        self._bundle, self._threads = bundle, threads
        raw = bundle.read(manifest.runtimes.portable.train)
        self._session: Any = load_session(raw, threads=threads)
        check_train_ports(self._session, manifest)
        self._evaluator: Evaluator | None = None
        self._changing = [tensor for tensor in manifest.tensors if tensor.kind != "frozen"]
        self._parameters = [tensor for tensor in manifest.tensors if tensor.kind == "parameter"]
        self._frozen: _Place | None = None
        self._places: list[_Place] = []
        self._spare: _Place | None = None
        self._bindings: dict[tuple[int, int, int], _Bound] = {}
        self._parts = 0
        self._loss, self._weight = np.zeros((), np.float32), np.zeros((), np.float32)
        self._scale, self._denominator = np.zeros((), np.float32), np.zeros((), np.float32)
        self._seed = np.zeros((), np.int64)

    def set_parameters(self, vector: Vector) -> None:
        """Replace the model; see `Trainer`."""
        check_vector(vector, self.manifest)
        if self._frozen is None:
            self._places = [_Place(self._changing)]
            self._frozen = _Place([t for t in self.manifest.tensors if t.kind == "frozen"])
        count = len(self._places[0].vector)
        self._places[0].vector[:] = vector[:count]
        self._frozen.vector[:] = vector[count:]
        self._begin_gradient()

    def parameters(self) -> Vector:
        """A copy of the model; see `Trainer`."""
        return np.concatenate([self._current().vector, self._frozen_place().vector])

    def step(self, x: AnyArray, y: AnyArray, learning_rate: float, seed: int = 0) -> Measure:
        """One step of plain SGD; see `Trainer`."""
        current, other = self._current(), self._other()
        if self._parts:
            raise RuntimeError("an accumulated gradient waits for `change`")
        x, y = check_batch(self.manifest, x, y)
        self._scale[()], self._denominator[()] = -learning_rate, 0
        loss = self._run(x, y, seed, current, current, other)
        self._places.reverse()
        return loss

    def accumulate(self, x: AnyArray, y: AnyArray, seed: int = 0) -> Measure:
        """Add a gradient; see `Trainer`."""
        current, other = self._current(), self._other()
        if self._spare is None:
            self._spare = _Place(self._parameters)
        base, target = (other, self._spare) if self._parts % 2 else (self._spare, other)
        x, y = check_batch(self.manifest, x, y)
        self._scale[()], self._denominator[()] = 1, 1
        self._parts += 1
        loss = self._run(x, y, seed, current, base, target)
        trained = self.manifest.trained
        for part in (slice(0, trained.start), slice(trained.stop, None)):
            current.vector[part] = other.vector[part]  # statistics
        return loss

    def change(self, function: Change) -> None:
        """Apply a gradient; see `Trainer`."""
        current = self._current()
        if not self._parts or self._spare is None:
            raise RuntimeError("no gradient has been accumulated")
        trained = self.manifest.trained
        sides = (self._spare.vector, self._other().vector[trained])
        function(current.vector[trained], sides[self._parts % 2])
        self._begin_gradient()

    def evaluate(self, x: AnyArray, y: AnyArray) -> Metrics:
        """Measures on one batch; see `Trainer`."""
        values = self._current().values | self._frozen_place().values
        x, y = check_batch(self.manifest, x, y)
        if self._evaluator is None:
            self._evaluator = Evaluator(self._bundle, self._threads)
        return self._evaluator.evaluate(values, x, y)

    def close(self) -> None:
        """Release the sessions and the model."""
        self._bindings, self._places = {}, []
        self._frozen = self._spare = None
        self._session = self._evaluator = None

    def _begin_gradient(self) -> None:
        """The first part of a batch is added to what is in the spare place: nothing."""
        if self._parts > 1 and self._spare is not None:
            self._spare.vector[:] = 0
        self._parts = 0

    def _run(
        self, x: AnyArray, y: AnyArray, seed: int, current: _Place, base: _Place, target: _Place
    ) -> Measure:
        """`target` = `base` + scale * gradient of `current`; statistics go to the other place."""
        key = (id(current), id(base), id(target))
        bound = self._bindings.get(key)
        if bound is None:
            bound = self._bindings[key] = _Bound(self._bind(current, base, target))
        bound.see("x", x)
        bound.see("y", y)
        self._seed[()] = seed
        run_bound(self._session, bound.binding)
        return Measure(float(self._loss), float(self._weight))

    def _bind(self, current: _Place, base: _Place, target: _Place) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("scale", shared_value(self._scale))
        binding.bind_ortvalue_input("denominator", shared_value(self._denominator))
        if self.manifest.random:
            binding.bind_ortvalue_input("seed", shared_value(self._seed))
        binding.bind_ortvalue_output("loss", shared_value(self._loss))
        binding.bind_ortvalue_output("weight", shared_value(self._weight))
        for name, value in (current.values | self._frozen_place().values).items():
            binding.bind_ortvalue_input(INPUT_PREFIX + name, value)
        for tensor in self._changing:
            name, to = tensor.name, self._other()
            if tensor.kind == "parameter":
                binding.bind_ortvalue_input(BASE_PREFIX + name, base.values[name])
                to = target
            binding.bind_ortvalue_output(OUTPUT_PREFIX + name, to.values[name])
        return binding

    def _current(self) -> _Place:
        if not self._places:
            raise RuntimeError("the trainer has no model: call set_parameters first")
        return self._places[0]

    def _other(self) -> _Place:
        if len(self._places) == 1:
            self._places.append(_Place(self._changing))
        return self._places[1]

    def _frozen_place(self) -> _Place:
        assert self._frozen is not None, "set with the first model"
        return self._frozen
