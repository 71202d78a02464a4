"""What a model may be trained for, beside one class of several."""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


def _network(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, outputs)
    )


def multi_label() -> ModelSpec:
    """Any number of 6 labels holds: float32 [b, 6] of 0 and 1. Rare ones weigh more."""
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 2.0, 5.0, 5.0, 9.0]))
    return ModelSpec(_network(6), torch.zeros(1, 12), loss)


def regression() -> ModelSpec:
    """Two numbers, float32 [b, 2], with a loss that forgives outliers, and a second measure."""

    def mean_absolute_error(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (output - y).abs().mean()

    return ModelSpec(_network(2), torch.zeros(1, 12), "huber", metrics={"mae": mean_absolute_error})


def imbalanced() -> ModelSpec:
    """Classes of very different sizes, and labels that are sometimes wrong."""
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.1)
    return ModelSpec(_network(3), torch.zeros(1, 12), loss)


def own_loss() -> ModelSpec:
    """The focal loss (Lin et al. 2017), written out; one value for each example."""

    def focal(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logs = output.log_softmax(1).gather(1, y[:, None])[:, 0]
        return -((1 - logs.exp()) ** 2) * logs

    return ModelSpec(_network(3), torch.zeros(1, 12), focal, example_labels=torch.tensor([0, 1, 2]))
