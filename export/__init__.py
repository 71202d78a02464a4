"""From a PyTorch model to an artifact bundle. The only package that imports torch.

    from export import ModelSpec

    def my_model() -> ModelSpec:
        module = torch.nn.Sequential(...)
        return ModelSpec(module, example_inputs=torch.zeros(1, 28, 28, 1), loss="cross_entropy")

`fedtide export my_model.py:my_model --out bundle` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    MeasureFunction = Callable[
        [torch.Tensor, torch.Tensor], torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    ]
    Loss = str | torch.nn.Module | MeasureFunction


@dataclass(frozen=True)
class ModelSpec:
    """What a user's function returns: a model, and how it is trained.

    A function `f(output, y)`, a loss or a metric, returns the mean of the batch [], or one value
    for each example [b], or their sum and what to divide it by, ([], []).
    """

    module: torch.nn.Module
    """The model with its initial weights; `module(x)` returns one tensor [b, ...]. Parameters
    with `requires_grad=False` stay as they are."""
    example_inputs: torch.Tensor
    """A batch of inputs, x[b, ...]; only its shape after b and its dtype matter, and for
    integers that its values are below the largest one allowed."""
    loss: Loss
    """A name of `export.losses.NAMED`, a loss module of torch.nn, or a function of (output, y)."""
    name: str | None = None
    """Name of the model; the function's name if None."""
    example_labels: torch.Tensor | None = None
    """A batch of labels, y[b, ...]: needed where the loss does not say what they look like."""
    metrics: Mapping[str, MeasureFunction] = field(default_factory=dict)
    """Measures for evaluation beside the loss and, for classifiers, the accuracy."""
    local: Sequence[str] = ()
    """Patterns (fnmatch) of parameters and statistics that stay on each device instead of being
    averaged; `*.bn*.*` for FedBN (Li et al. 2021)."""


__all__ = ["ModelSpec"]
