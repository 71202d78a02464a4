"""A small network in the manner of MobileNetV3 (Howard et al. 2019)."""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


class SqueezeExcite(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.SiLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x * self.scale(x)
        return y


class InvertedResidual(nn.Module):
    """Expand, convolve each channel alone, project; the input is added where shapes allow."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: type[nn.Module], *, excite: bool
    ) -> None:
        super().__init__()
        width = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            activation(),
            nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            activation(),
            SqueezeExcite(width) if excite else nn.Identity(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.residual else y


def mobilenet() -> ModelSpec:
    """Images of 32x32 pixels, 10 classes."""
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        InvertedResidual(16, 16, 1, nn.ReLU6, excite=False),
        InvertedResidual(16, 24, 2, nn.ReLU6, excite=True),
        InvertedResidual(24, 24, 1, nn.Hardswish, excite=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(24, 10),
    )
    return ModelSpec(module, torch.zeros(1, 3, 32, 32), "cross_entropy")
