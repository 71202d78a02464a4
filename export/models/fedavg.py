"""The MNIST models of McMahan et al. 2016, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", section 3. Inputs are float32 [b, 1, 28, 28]."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from export import ModelSpec


def mnist_2nn() -> ModelSpec:
    """Two hidden layers of 200 ReLU units: 199,210 parameters."""
    with _seeded():
        module = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 200),
            nn.ReLU(),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Linear(200, 10),
        )
    return ModelSpec(module, torch.zeros(1, 1, 28, 28), "cross_entropy", "mnist_2nn")


def mnist_cnn() -> ModelSpec:
    """Two 5x5 convolutions (32, 64), each with 2x2 max pooling, 512 units: 1,663,370 parameters.

    The paper gives no padding; its parameter count fits SAME, as in TensorFlow's tutorial.
    """
    with _seeded():
        module = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )
    return ModelSpec(module, torch.zeros(1, 1, 28, 28), "cross_entropy", "mnist_cnn")


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same initial weights in every export; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2016)
        yield
