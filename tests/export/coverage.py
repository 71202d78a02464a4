"""One step of many small functions in one exported graph, compared with PyTorch's autograd.

The graph is what the exporter makes of a model that sums a linear functional of each function's
output, without the rewrites, which have tests of their own. The gradients of an offset added to
each input, zero in value, and of the parameters, are compared for several sizes of the batch.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from export import ModelSpec
from export.inspection import Model, inspect_model
from export.portable_step import train_graph
from fedtide.runtime import load_session

BATCHES = (5, 3, 1, 7)
TOLERANCE = 1e-5
"""Of a gradient, relative to 1 + its largest element; measured errors are about 1e-7."""


@dataclass(frozen=True)
class Values:
    """An input [b, *shape]; `below` makes integers, `binary` 0 and 1, `positive` above 0."""

    shape: tuple[int, ...]
    below: int = 0
    binary: bool = False
    positive: bool = False

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Integral values are labels; of the others, many are equal, multiples of 1/2."""
        shape = (batch, *self.shape)
        if self.below or self.binary:
            return torch.randint(0, self.below or 2, shape, generator=generator).float()
        values = torch.randn(shape, generator=generator)
        if self.positive:
            return values.abs() + 0.1
        equal = torch.rand(shape, generator=generator) < 0.4
        return torch.where(equal, (2 * values).round() / 2, values)


@dataclass(frozen=True)
class Case:
    """A module, or a function of tensors, and its inputs."""

    name: str
    make: Callable[..., Any]
    inputs: tuple[Values, ...]

    @property
    def width(self) -> int:
        """Elements of an example's inputs together."""
        return sum(math.prod(values.shape) for values in self.inputs)


class _Part(nn.Module):
    """A case's loss for each example."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.function = copy.deepcopy(case.make)
        self.offsets = nn.ParameterList(
            nn.Parameter(torch.zeros(values.shape)) for values in case.inputs if _real(values)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs, start, offsets = [], 0, iter(self.offsets)
        for values in self.case.inputs:
            end = start + math.prod(values.shape)
            part = x[:, start:end].reshape(-1, *values.shape)
            if _real(values):
                part = part + next(offsets)
            # Inspection runs the model on any numbers.
            if values.below:
                part = part.long() % values.below
            elif values.binary:
                part = (part > 0.5).float()
            inputs.append(part)
            start = end
        result: torch.Tensor = self.function(*inputs)
        if result.dim() == 0:
            return result.expand(x.shape[0]).float()
        rows = result.reshape(x.shape[0], -1).float()
        loss: torch.Tensor = rows @ torch.cos(
            torch.arange(rows.shape[1], dtype=torch.float32) + 0.3
        )
        return loss


def _real(values: Values) -> bool:
    return not values.below and not values.binary


class _Group(nn.Module):
    def __init__(self, cases: tuple[Case, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_Part(case) for case in cases)
        self.cases = cases

    def batch(self, size: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(size)
        drawn = [v.draw(size, generator) for case in self.cases for v in case.inputs]
        return torch.cat([values.reshape(size, -1) for values in drawn], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        widths = [case.width for case in self.cases]
        pieces = torch.split(x, widths, 1)
        losses = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return torch.stack(losses).sum(0)


def _sum(output: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return output.sum(), torch.full((), 1.0)


@functools.cache
def errors(cases: tuple[Case, ...]) -> dict[str, float]:
    """The largest error of each case's gradients and statistics, over all sizes of the batch.

    Raises:
        ExportError: a case cannot be exported.
    """
    torch.manual_seed(0)
    group = _Group(cases)
    spec = ModelSpec(group, group.batch(2), _sum, example_labels=torch.zeros(2))
    model = inspect_model(spec, "coverage")
    session = load_session(train_graph(model, 18, rewrites=()).SerializeToString())
    worst = dict.fromkeys((case.name for case in cases), 0.0)
    for size in BATCHES:
        x = group.batch(size)
        expected = _expected(model, x)
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(None, _feed(session, model, x)), strict=True))
        for name, reference in expected.items():
            result = results["new." + name]
            assert result.shape == reference.shape
            error = np.abs(result - reference).max() / (1 + np.abs(reference).max())
            case = cases[int(name.split(".")[1])].name
            # Written so that a NaN is an error.
            worst[case] = worst[case] if error <= worst[case] else float(error)
        total = expected_loss(model, x)
        if not abs(float(results["loss"]) - total) <= TOLERANCE * len(cases) * (1 + abs(total)):
            worst = dict.fromkeys(worst, math.inf)
    return worst


def expected_loss(model: Model, x: torch.Tensor) -> float:
    """The loss that PyTorch computes."""
    with torch.no_grad():
        return float(copy.deepcopy(model.module)(x).sum())


def _expected(model: Model, x: torch.Tensor) -> dict[str, Any]:
    module = copy.deepcopy(model.module)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(
        module(x).sum(), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    expected = dict(zip(parameters, gradients, strict=True))
    known = {tensor.name for tensor in model.tensors if tensor.kind == "statistic"}
    expected |= {name: value for name, value in module.named_buffers() if name in known}
    return {name: value.numpy() for name, value in expected.items()}


def _feed(session: Any, model: Model, x: torch.Tensor) -> dict[str, Any]:
    """scale = denominator = 1 and base = 0: the step returns the gradients."""
    state = {t.name: v.numpy() for t, v in zip(model.tensors, model.values(), strict=True)}
    one = np.array(1, np.float32)
    fixed = {
        "x": x.numpy(),
        "y": np.zeros(len(x), np.float32),
        "scale": one,
        "denominator": one,
        "seed": np.array(1),
    }
    feed = {}
    for port in session.get_inputs():
        prefix, _, name = port.name.partition(".")
        if prefix == "tensor":
            feed[port.name] = state[name]
        elif prefix == "base":
            feed[port.name] = np.zeros_like(state[name])
        else:
            feed[port.name] = fixed[port.name]
    return feed
