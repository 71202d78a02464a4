"""A convolutional auto-encoder, for instance to notice what is unlike the rest."""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


def autoencoder() -> ModelSpec:
    """Images of 28x28 pixels; the labels of a device's data are its inputs."""
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ELU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(784, 32),
        nn.Linear(32, 784),
        nn.Unflatten(1, (16, 7, 7)),
        nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
        nn.ELU(),
        nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1),
        nn.Sigmoid(),
    )
    return ModelSpec(module, torch.zeros(1, 1, 28, 28), "mse")
