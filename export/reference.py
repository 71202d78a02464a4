"""What PyTorch itself computes: the user's module under autograd, in eager mode.

Nothing here goes through the exporter's traces, rewrites or decompositions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.func import functional_call

from export.inspection import Model
from export.losses import Measure
from export.randomness import SeededRandomness

Values = list[torch.Tensor]
"""The model's tensors in manifest order."""


class Gradients(NamedTuple):
    """One forward and backward pass in training mode."""

    loss: float
    """Sum over the batch."""
    weight: float
    gradients: Values
    """Of the sum, one for each tensor; zero for what is no parameter."""
    values: Values
    """Statistics after the pass, everything else as before."""


def gradients(
    model: Model, values: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, seed: int | None
) -> Gradients:
    """Differentiate the loss of the batch; `seed` of dropout, None keeps every element."""
    leaves = {
        tensor.name: value.detach().clone().requires_grad_(tensor.kind == "parameter")
        for tensor, value in zip(model.tensors, values, strict=True)
    }
    randomness = SeededRandomness(None if seed is None else torch.tensor(seed))
    model.module.train()
    with randomness:
        loss, weight = model.loss.measure(functional_call(model.module, leaves, (x,)), y)
        trained = [leaf for leaf in leaves.values() if leaf.requires_grad]
        found = iter(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))
    return Gradients(
        loss.item(),
        weight.item(),
        [next(found) if v.requires_grad else torch.zeros_like(v) for v in leaves.values()],
        [leaf.detach() for leaf in leaves.values()],
    )


def sgd_step(
    model: Model,
    values: Sequence[torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    learning_rate: float,
    seed: int,
) -> tuple[Gradients, Values]:
    """One step of plain SGD on the mean loss of a batch; the new values."""
    done = gradients(model, values, x, y, seed)
    rate = learning_rate / done.weight
    pairs = zip(done.values, done.gradients, strict=True)
    return done, [value - rate * gradient for value, gradient in pairs]


def evaluation(
    model: Model, values: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> Mapping[str, tuple[float, float]]:
    """Sum and weight of the loss and every metric in evaluation mode."""
    named = {tensor.name: value for tensor, value in zip(model.tensors, values, strict=True)}
    with torch.no_grad():
        output = functional_call(model.module.eval(), named, (x,))
        measures: dict[str, Measure] = {
            name: function(output, y)
            for name, function in {"loss": model.loss.measure, **model.metrics}.items()
        }
    model.module.train()
    return {name: (total.item(), weight.item()) for name, (total, weight) in measures.items()}


def is_additive(model: Model) -> bool:
    """Whether a batch's gradient is the sum of its parts', to float32's precision."""
    x, y = model.example_batch(6)
    values = model.values()
    whole = gradients(model, values, x, y, None)
    parts = [gradients(model, values, x[at], y[at], None) for at in (slice(0, 2), slice(2, 6))]
    if abs(whole.weight - sum(part.weight for part in parts)) > 1e-4 * abs(whole.weight):
        return False
    for index, gradient in enumerate(whole.gradients):
        total = parts[0].gradients[index] + parts[1].gradients[index]
        if (gradient - total).abs().max() > 1e-6 + 1e-3 * gradient.abs().max():
            return False
    return True
