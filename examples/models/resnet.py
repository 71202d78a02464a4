"""A residual network for images of 32x32 pixels (He et al. 2015, section 4.2), small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from export import ModelSpec

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            norm(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _network(norm: Norm) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        norm(16),
        nn.ReLU(inplace=True),
        Block(16, 16, 1, norm),
        Block(16, 32, 2, norm),
        Block(32, 64, 2, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def resnet() -> ModelSpec:
    """Batch normalisation: its running statistics are averaged like parameters.

    Add `local=("*.running_*",)` to keep each device's own.
    """
    return ModelSpec(_network(nn.BatchNorm2d), torch.zeros(1, 3, 32, 32), "cross_entropy")


def resnet_groupnorm() -> ModelSpec:
    """Group normalisation has no statistics, and suits devices whose data differ (Hsieh 2020)."""

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(8, channels)

    return ModelSpec(_network(norm), torch.zeros(1, 3, 32, 32), "cross_entropy")
