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
    """4 features, 2 targets."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return ModelSpec(module, torch.zeros(1, 4), "mse")
