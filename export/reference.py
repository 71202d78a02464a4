"""What PyTorch itself computes: the user's module under autograd, in eager mode.

Nothing here goes through the exporter's traces, rewrites or decompositions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
import torch
from torch.func import functional_call

from export.inspection import Model, arranged
from export.losses import Measure, separates
from export.randomness import SeededRandomness
from fedtide.errors import ExportError

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
    """Differentiate the loss of the batch; `seed` of dropout, None keeps every element.

    Raises:
        ExportError: PyTorch failed.
    """
    leaves, loss, weight, found = _differentiated(model, values, x, y, seed)
    every = []
    for name, leaf in leaves.items():
        gradient = found.get(name)
        every.append(torch.zeros_like(leaf) if gradient is None else gradient)
    return Gradients(loss.item(), weight.item(), every, [leaf.detach() for leaf in leaves.values()])


def _differentiated(
    model: Model, values: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, seed: int | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, dict[str, torch.Tensor | None]]:
    """Tensors after the pass, the loss's sum and weight, and the gradients of its parameters;
    None for one that the loss does not reach."""
    leaves = {
        tensor.name: value.detach().clone().requires_grad_(tensor.kind == "parameter")
        for tensor, value in zip(model.tensors, values, strict=True)
    }
    randomness = SeededRandomness(None if seed is None else torch.tensor(seed))
    model.module.train()
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    found: Sequence[torch.Tensor | None] = [None] * len(trained)
    try:
        with randomness:
            loss, weight = model.loss.measure(functional_call(model.module, leaves, (x,)), y)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    except Exception as exc:
        raise ExportError(
            f"the model failed on a training batch of {len(x)} examples: {exc}",
            hint="batches have any size: use x.shape[0] or -1 where the model needs it",
        ) from exc
    return leaves, loss, weight, dict(zip(trained, found, strict=True))


def freeze_unreached(model: Model) -> tuple[Model, tuple[str, ...]]:
    """The model with those parameters frozen that its loss does not reach, and their names.

    torch.optim skips a parameter without a gradient: neither weight decay nor a step changes it.

    Raises:
        ExportError: PyTorch failed, or nothing would be left to train or to average.
    """
    *_, found = _differentiated(model, model.values(), *model.example_batch(3), None)
    unreached = tuple(name for name, gradient in found.items() if gradient is None)
    if not unreached:
        return model, ()
    if len(unreached) == len(found):
        raise ExportError(
            f"the loss depends on no parameter of the model, such as {unreached[0]!r}",
            hint="look for detach(), no_grad() or an output that is not the one computed",
        )
    tensors = arranged(
        msgspec.structs.replace(tensor, kind="frozen", shared=False)
        if tensor.name in unreached
        else tensor
        for tensor in model.tensors
    )
    return replace(model, tensors=tensors), unreached


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
    rate = learning_rate / done.weight if done.weight else 0.0
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
    """Whether a batch's gradient is the sum of its parts', to float32's precision.

    Not with statistics, which each part would move once more, and not if the loss may divide by
    anything. Otherwise tried out, away from the zeros of initial weights, which hide a lot.
    """
    if any(tensor.kind == "statistic" for tensor in model.tensors):
        return False
    with torch.no_grad():
        x, y = model.example_batch(3)
        if not separates(model.loss, model.module(x), y):
            return False
    return all(_parts_add_up(model, seed) for seed in (0, 1))


def _parts_add_up(model: Model, seed: int) -> bool:
    generator = torch.Generator().manual_seed(seed)
    values = [v + 0.1 * torch.randn(v.shape, generator=generator) for v in model.values()]
    x, y = model.example_batch(6, seed)
    whole = gradients(model, values, x, y, None)
    parts = [gradients(model, values, x[at], y[at], None) for at in (slice(0, 2), slice(2, 6))]
    if abs(whole.weight - sum(part.weight for part in parts)) > 1e-4 * abs(whole.weight):
        return False
    for index, gradient in enumerate(whole.gradients):
        total = parts[0].gradients[index] + parts[1].gradients[index]
        if (gradient - total).abs().max() > 1e-6 + 1e-3 * gradient.abs().max():
            return False
    return True
