"""From a PyTorch model to an artifact bundle. The only package that imports torch.

    from export import ModelSpec

    def my_model() -> ModelSpec:
        module = torch.nn.Sequential(...)
        return ModelSpec(module, example_inputs=torch.zeros(1, 28, 28, 1), loss="cross_entropy")

`fedtide export my_model.py:my_model --out bundle` does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Loss = Literal["cross_entropy", "mse"]


@dataclass(frozen=True)
class ModelSpec:
    """What a user's function returns: a model, and how it is trained."""

    module: torch.nn.Module
    """The model with its initial weights; `module(x)` returns one tensor [b, ...]."""
    example_inputs: torch.Tensor
    """A batch of inputs, x[b, ...]; only its shape after b and its dtype matter."""
    loss: Loss
    """cross_entropy: module(x) is logits [b, classes], labels are int64 [b].
    mse: labels are float32 of the shape of module(x)."""
    name: str | None = None
    """Name of the model; the function's name if None."""


__all__ = ["Loss", "ModelSpec"]
