"""Runs every runtime of a bundle against PyTorch autograd before the bundle is given out.

From random weights near the initial model, where PyTorch itself is sure (`compute_expected`): one
step and several, on several batch sizes, with constant regions in the inputs (ties in pooling
windows, the padding of a text); a gradient; and evaluation. A tensor passes if no value differs
from PyTorch's by more than

    1e-6 + 1e-3 * (largest change of that tensor in PyTorch)

and a measure if it differs by less than 1e-4 relative (1e-5 absolute). Measured: about 1e-7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_client.fingerprint import (
    MEASURE_ABSOLUTE,
    MEASURE_RELATIVE,
    TENSOR_ABSOLUTE,
    TENSOR_RELATIVE,
    difference,
    start_near,
)
from edge_client.trainers import Trainer
from edge_client.trainers.ort_training import OrtTrainingTrainer
from edge_client.trainers.portable import PortableTrainer
from export.inspection import Model
from export.reference import evaluation, gradients, sgd_step
from fedtide.bundle import Bundle
from fedtide.errors import ExportError, FedtideError
from fedtide.manifest import Manifest, Tensor
from fedtide.vectors import Vector

LEARNING_RATE = 0.05
_BATCHES = (5, 3, 5, 1)
"""Batch sizes of the consecutive steps: the size changes, and one example is a batch too."""
_BATCHES_COUPLED = (5, 3, 5, 2)
"""Where examples see each other: PyTorch refuses to normalise a single value."""
_STARTS_MAX = 6
_LAST_DIGIT = 2.0**-22
_STEADY = 0.25
"""Of the allowed error; PyTorch and onnxruntime usually differ by a thousandth of it."""

Batch = tuple[torch.Tensor, torch.Tensor]
Measured = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Expected:
    """What PyTorch computed."""

    seed: int
    start: Vector
    """Near the initial model: `edge_client.fingerprint.start_near`."""
    batches: tuple[Batch, ...]
    losses: tuple[tuple[float, float], ...]
    """Sum and weight of each step's loss."""
    vectors: tuple[Vector, ...]
    """The model after each step of plain SGD."""
    gradient: Vector
    """Of the loss's sum over the first batch, at the start, in the layout of the flat vector."""
    evaluation: Measured
    """Of the last model on the first batch."""


def verify_bundle(
    expected: Expected, bundle: Bundle, progress: Callable[[str], None] = lambda _: None
) -> tuple[str, ...]:
    """Verify every runtime that `bundle` offers and that can run here; the names of those.

    Raises:
        ExportError: a runtime computes something else than PyTorch, or fails.
    """
    makers: dict[str, Callable[[Bundle], Trainer]] = {"portable": PortableTrainer}
    if bundle.manifest.runtimes.ort_training is not None:
        makers["ort_training"] = OrtTrainingTrainer
    for runtime, make in makers.items():
        progress(f"verifying runtime {runtime} against PyTorch")
        try:
            trainer = make(bundle)
            try:
                verify_trainer(runtime, trainer, bundle.manifest, expected)
            finally:
                trainer.close()
        except ExportError:
            raise
        except (FedtideError, RuntimeError, ValueError) as exc:
            raise ExportError(f"verification: runtime {runtime} failed: {exc}") from exc
    return tuple(makers)


def verify_trainer(runtime: str, trainer: Trainer, manifest: Manifest, expected: Expected) -> None:
    """Run the expected steps on `trainer` and compare.

    Raises:
        ExportError: naming runtime, tensor and error.
    """
    compare = _Comparison(runtime, manifest.tensors)
    trainer.set_parameters(expected.start)
    compare.vectors("set_parameters", trainer.parameters(), expected.start, None)
    for index, (x, y) in enumerate(expected.batches):
        loss = trainer.step(x.numpy(), y.numpy(), LEARNING_RATE, seed=index)
        what = f"step {index + 1} (batch {len(x)})"
        compare.measures(what, {"loss": tuple(loss)}, {"loss": expected.losses[index]})
        compare.vectors(what, trainer.parameters(), expected.vectors[index], expected.start)
    x, y = expected.batches[0]
    result = trainer.evaluate(x.numpy(), y.numpy())
    measures = {name: tuple(measure) for name, measure in result.measures.items()}
    compare.measures("evaluation", measures, expected.evaluation)
    trainer.set_parameters(expected.start)
    gradient = np.zeros_like(expected.start)
    # Compared as the mean loss's, the size of which does not grow with the batch.
    weight = trainer.accumulate(x.numpy(), y.numpy(), seed=0).weight

    def read(_weights: Vector, accumulated: Vector) -> None:
        gradient[manifest.trained] = accumulated / weight

    trainer.change(read)
    mean = (expected.gradient / weight).astype(np.float32)
    compare.vectors("the gradient", gradient, mean, np.zeros_like(gradient))


def compute_expected(model: Model) -> Expected:
    """The same steps by PyTorch's autograd, in float32, from a start where PyTorch is sure.

    Near the zero of a ReLU or a tie of two maxima, rounding decides, and two right results differ
    by far more than rounding. So the start is the first of a few whose results hardly move when
    its values do by a last digit; else the steadiest of them.

    Raises:
        ExportError: PyTorch failed, or its loss is not finite.
    """
    best, steadiest = None, math.inf
    for attempt in range(_STARTS_MAX):
        seed = attempt * len(_BATCHES)
        expected = _expected(model, start_near(_flat(model.values()), model.tensors, seed), seed)
        unsteadiness = _unsteadiness(model, expected)
        if best is None or unsteadiness < steadiest:
            best, steadiest = expected, unsteadiness
        if unsteadiness <= _STEADY:
            break
    assert best is not None
    return best


def _unsteadiness(model: Model, expected: Expected) -> float:
    """How far the results move, in allowed errors, when the start does by a last digit."""
    generator = np.random.default_rng(expected.seed)
    signs = generator.choice(np.array([-1, 1], np.int8), expected.start.shape)
    changes, measured = _changes(expected), _measured(expected)
    ratios = [0.0]
    for digit in (np.float32(_LAST_DIGIT), np.float32(-_LAST_DIGIT)):
        moved = _expected(model, expected.start * (1 + signs * digit), expected.seed)
        for actual, right in zip(_changes(moved), changes, strict=True):
            for tensor in model.tensors:
                part = slice(tensor.offset, tensor.offset + tensor.size)
                error, allowed = _error(actual[part], right[part], right[part])
                ratios.append(float(error.max()) / allowed)
        pairs = zip(_measured(moved), measured, strict=True)
        ratios += [abs(ours - theirs) / _allowed(theirs) for ours, theirs in pairs]
    worst = float(np.max(ratios))
    return math.inf if math.isnan(worst) else worst


def _changes(expected: Expected) -> list[Vector]:
    weight = np.float32(expected.losses[0][1])
    changes = [difference(vector, expected.start) for vector in expected.vectors]
    return [*changes, expected.gradient / weight]


def _measured(expected: Expected) -> list[float]:
    pairs = [*expected.losses, *expected.evaluation.values()]
    return [value for pair in pairs for value in pair]


def _expected(model: Model, start: Vector, seed: int) -> Expected:
    values = _split(start, model.tensors)
    sizes = _BATCHES if model.additive else _BATCHES_COUPLED
    batches = tuple(
        _with_constant_regions(model.example_batch(size, seed + 1 + index))
        for index, size in enumerate(sizes)
    )
    gradient = _flat(gradients(model, values, *batches[0], seed=0).gradients)
    losses, vectors = [], []
    for index, (x, y) in enumerate(batches):
        done, values = sgd_step(model, values, x, y, LEARNING_RATE, seed=index)
        if not math.isfinite(done.loss):
            raise ExportError(
                f"the model's loss in PyTorch is {done.loss} after {index} steps of learning rate "
                f"{LEARNING_RATE}, on random inputs and near the initial weights",
                hint="so nothing can be compared: look for a logarithm, root or quotient without "
                "a bound",
            )
        losses.append((done.loss, done.weight))
        vectors.append(_flat(values))
    measured = evaluation(model, values, *batches[0])
    return Expected(seed, start, batches, tuple(losses), tuple(vectors), gradient, measured)


def _error(actual: Vector, expected: Vector, change: Vector) -> tuple[Vector, float]:
    """The error of each value of a tensor, and the largest one allowed."""
    allowed = TENSOR_ABSOLUTE + TENSOR_RELATIVE * float(np.abs(change).max())
    return np.abs(difference(actual, expected)), allowed


def _allowed(measure: float) -> float:
    """The largest error allowed to a measure."""
    return MEASURE_ABSOLUTE + MEASURE_RELATIVE * abs(measure)


def _with_constant_regions(batch: Batch) -> Batch:
    """Set one half of every float input to a constant, as a picture's background is.

    Of integers, of the first example to zero, as a short text is filled up.
    """
    x, y = batch
    if x.dim() > 1 and x.shape[-1] > 1:
        half = x.shape[-1] // 2
        if x.is_floating_point():
            x[..., :half] = 0.25
        else:
            x[0, ..., :half] = 0
    return x, y


def _split(vector: Vector, tensors: Sequence[Tensor]) -> list[torch.Tensor]:
    return [
        torch.from_numpy(vector[tensor.offset : tensor.offset + tensor.size]).reshape(tensor.shape)
        for tensor in tensors
    ]


def _flat(values: Sequence[torch.Tensor]) -> Vector:
    vector: NDArray[Any] = torch.cat([value.reshape(-1) for value in values]).numpy()
    return vector.astype(np.float32)


@dataclass(frozen=True)
class _Comparison:
    runtime: str
    tensors: tuple[Tensor, ...]

    def measures(self, what: str, actual: Mapping[str, Any], expected: Measured) -> None:
        if set(actual) != set(expected):
            raise self._error(f"{what}: measures {sorted(actual)}, not {sorted(expected)}")
        for name, pair in expected.items():
            for kind, ours, theirs in zip(("sum", "weight"), actual[name], pair, strict=True):
                if not abs(ours - theirs) <= _allowed(theirs):
                    raise self._error(f"{what}: {kind} of {name} is {ours}, PyTorch has {theirs}")

    def vectors(self, what: str, actual: Vector, expected: Vector, start: Vector | None) -> None:
        for tensor in self.tensors:
            part = slice(tensor.offset, tensor.offset + tensor.size)
            before = expected if start is None else start
            change = difference(expected[part], before[part])
            error, allowed = _error(actual[part], expected[part], change)
            worst = int(np.argmax(error)) if not np.isnan(error).any() else 0
            if not error[worst] <= allowed:
                raise self._error(
                    f"{what}: tensor {tensor.name!r} differs from PyTorch by {error[worst]:.2e} "
                    f"at index {worst}, allowed {allowed:.2e}"
                )

    def _error(self, text: str) -> ExportError:
        return ExportError(
            f"verification: runtime {self.runtime}, {text}",
            hint="please report the model; --runtime portable exports without ort_training"
            if self.runtime == "ort_training"
            else "please report the model: its portable step would train something else",
        )
