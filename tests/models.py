"""Small models for tests; exported by `tests/bundles.py`."""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


def tiny_mlp() -> ModelSpec:
    """8 features, 3 classes."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return ModelSpec(module, torch.zeros(1, 8), "cross_entropy")


def tiny_cnn() -> ModelSpec:
    """1x8x8 images, 10 classes."""
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return ModelSpec(module, torch.zeros(1, 1, 8, 8), "cross_entropy")


def tiny_regression() -> ModelSpec:
    """4 features, 2 targets, and a measure of the user's own."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return ModelSpec(module, torch.zeros(1, 4), "mse", metrics={"mae": _mean_absolute_error})


def _mean_absolute_error(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output - y).abs().mean()


def tiny_norm() -> ModelSpec:
    """6 features, 3 classes; the first batch normalisation is averaged, the second is local."""
    torch.manual_seed(4)
    module = nn.Sequential(
        nn.Linear(6, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )
    return ModelSpec(module, torch.zeros(1, 6), "cross_entropy", local=("4.*",))


def tiny_dropout() -> ModelSpec:
    """8 features, 3 classes."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 3))
    return ModelSpec(module, torch.zeros(1, 8), "cross_entropy")


class TinyTokens(nn.Module):
    """5 tokens of 12; embedding and output share their weights, what is between is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.output = nn.Linear(8, 12)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(torch.tanh(self.frozen(self.embedding(tokens))))
        return logits.transpose(1, 2)


def tiny_tokens() -> ModelSpec:
    """Tied weights, a frozen layer, weighted classes, and labels that are ignored."""
    torch.manual_seed(6)
    loss = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2.0, 12))
    return ModelSpec(TinyTokens(), torch.full((1, 5), 11), loss)
