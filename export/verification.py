"""Runs every runtime of a bundle against PyTorch autograd before the bundle is given out.

From random weights near the initial model: one step and several, on two batch sizes, with
constant regions in the inputs (ties in pooling windows), and evaluation. A tensor passes if no
value differs from PyTorch's by more than

    1e-6 + 1e-3 * (largest change of that tensor in PyTorch)

and a loss if it differs by less than 1e-4 relative (1e-5 absolute). Measured: about 1e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from edge_client.trainers import Trainer
from edge_client.trainers.ort_training import OrtTrainingTrainer
from edge_client.trainers.portable import PortableTrainer
from export.inspection import Model
from fedtide.bundle import Bundle
from fedtide.errors import ExportError, FedtideError
from fedtide.vectors import Vector

_LEARNING_RATE = 0.05
_BATCHES = (5, 3, 5, 1)
"""Batch sizes of the consecutive steps: the size changes, and one example is a batch too."""
TENSOR_ABSOLUTE, TENSOR_RELATIVE = 1e-6, 1e-3
LOSS_ABSOLUTE, LOSS_RELATIVE = 1e-5, 1e-4

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Expected:
    """What PyTorch computed: each step's loss and vector, and one evaluation."""

    start: Vector
    batches: tuple[Batch, ...]
    losses: tuple[float, ...]
    vectors: tuple[Vector, ...]
    evaluation_loss: float
    correct: int | None


def verify_bundle(model: Model, bundle: Bundle, seed: int = 0) -> tuple[str, ...]:
    """Verify every runtime that `bundle` offers and that can run here; the names of those.

    Raises:
        ExportError: a runtime computes something else than PyTorch, or fails.
    """
    expected = compute_expected(model, seed)
    makers: dict[str, Callable[[Bundle], Trainer]] = {"portable": PortableTrainer}
    if bundle.manifest.runtimes.ort_training is not None:
        makers["ort_training"] = OrtTrainingTrainer
    for runtime, make in makers.items():
        try:
            trainer = make(bundle)
            try:
                verify_trainer(runtime, trainer, model, expected)
            finally:
                trainer.close()
        except ExportError:
            raise
        except (FedtideError, RuntimeError, ValueError) as exc:
            raise ExportError(f"verification: runtime {runtime} failed: {exc}") from exc
    return tuple(makers)


def verify_trainer(runtime: str, trainer: Trainer, model: Model, expected: Expected) -> None:
    """Run the expected steps on `trainer` and compare.

    Raises:
        ExportError: naming runtime, tensor and error.
    """
    trainer.set_parameters(expected.start)
    _check_vector(runtime, model, "set_parameters", trainer.parameters(), expected.start, None)
    for index, (x, y) in enumerate(expected.batches):
        loss = trainer.step(x.numpy(), y.numpy(), _LEARNING_RATE)
        what = f"step {index + 1} (batch {len(x)})"
        _check_loss(runtime, what, loss, expected.losses[index])
        _check_vector(
            runtime, model, what, trainer.parameters(), expected.vectors[index], expected.start
        )
    x, y = expected.batches[0]
    result = trainer.evaluate(x.numpy(), y.numpy())
    _check_loss(runtime, "evaluation", result.loss_sum / len(x), expected.evaluation_loss)
    if result.correct != expected.correct:
        raise ExportError(
            f"verification: runtime {runtime}, evaluation: {result.correct} correct predictions, "
            f"PyTorch has {expected.correct}"
        )


def compute_expected(model: Model, seed: int = 0) -> Expected:
    """The same steps by PyTorch's autograd, in float32."""
    generator = torch.Generator().manual_seed(seed)
    values = [
        value + 0.02 * torch.randn(value.shape, generator=generator) for value in model.values()
    ]
    batches = tuple(
        _with_constant_regions(model.example_batch(size, seed + 1 + index))
        for index, size in enumerate(_BATCHES)
    )
    start = _flat(values)
    losses, vectors = [], []
    for x, y in batches:
        loss, values = _autograd_step(model, values, x, y)
        losses.append(loss)
        vectors.append(_flat(values))
    with torch.no_grad():
        output = _forward(model, values, batches[0][0], training=False)
        correct = None
        if model.classes is not None:
            correct = int((output.argmax(1) == batches[0][1]).sum())
        evaluation_loss = float(_loss(model, output, batches[0][1]))
    return Expected(start, batches, tuple(losses), tuple(vectors), evaluation_loss, correct)


def _with_constant_regions(batch: Batch) -> Batch:
    """Set one half of every float input to a constant, as a picture's background is."""
    x, y = batch
    if x.is_floating_point() and x.dim() > 1 and x.shape[-1] > 1:
        x[..., : x.shape[-1] // 2] = 0.25
    return x, y


def _autograd_step(
    model: Model, values: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> tuple[float, list[torch.Tensor]]:
    leaves = [
        value.clone().requires_grad_(tensor.trainable)
        for tensor, value in zip(model.tensors, values, strict=True)
    ]
    loss = _loss(model, _forward(model, leaves, x, training=True), y)
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = iter(torch.autograd.grad(loss, trained))
    return loss.item(), [
        (leaf - _LEARNING_RATE * next(gradients)).detach() if leaf.requires_grad else leaf
        for leaf in leaves
    ]


def _forward(
    model: Model, values: Sequence[torch.Tensor], x: torch.Tensor, *, training: bool
) -> torch.Tensor:
    names = [tensor.name for tensor in model.tensors]
    module = model.module.train(training)
    output: torch.Tensor = functional_call(module, dict(zip(names, values, strict=True)), (x,))
    return output


def _loss(model: Model, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """PyTorch's own loss functions, not those that were exported."""
    if model.loss == "mse":
        return torch.nn.functional.mse_loss(output, y)
    return torch.nn.functional.cross_entropy(output, y)


def _flat(values: Sequence[torch.Tensor]) -> Vector:
    vector: NDArray[Any] = torch.cat([value.reshape(-1) for value in values]).numpy()
    return vector.astype(np.float32, copy=True)


def _check_loss(runtime: str, what: str, actual: float, expected: float) -> None:
    error = abs(actual - expected)
    if not error <= LOSS_ABSOLUTE + LOSS_RELATIVE * abs(expected):
        raise ExportError(
            f"verification: runtime {runtime}, {what}: loss is {actual:.7g}, "
            f"PyTorch has {expected:.7g}"
        )


def _check_vector(
    runtime: str, model: Model, what: str, actual: Vector, expected: Vector, start: Vector | None
) -> None:
    for tensor in model.tensors:
        part = slice(tensor.offset, tensor.offset + tensor.size)
        change = 0.0 if start is None else float(np.abs(expected[part] - start[part]).max())
        allowed = TENSOR_ABSOLUTE + TENSOR_RELATIVE * change
        error = float(np.abs(actual[part] - expected[part]).max())
        if not error <= allowed:
            raise ExportError(
                f"verification: runtime {runtime}, {what}: tensor {tensor.name!r} differs from "
                f"PyTorch by {error:.3g}, allowed {allowed:.3g}",
                hint="please report the model; --runtime portable exports without ort_training"
                if runtime == "ort_training"
                else "please report the model: its portable step would train something else",
            )
