"""A model to export: any function without arguments that returns an `export.ModelSpec`.

fedtide export examples/my_model.py:build --out bundle
"""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


def build() -> ModelSpec:
    """A small convolutional classifier of 28x28 grey images in ten classes."""
    torch.manual_seed(0)  # the initial model is part of the bundle
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )
    return ModelSpec(module, example_inputs=torch.zeros(1, 1, 28, 28), loss="cross_entropy")
