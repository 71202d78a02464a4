"""A U-Net (Ronneberger et al. 2015): a class for each pixel."""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(4, outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


def _transposed(channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)


def _bilinear(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(channels, channels // 2, 1),
    )


class UNet(nn.Module):
    """Images [b,1,h,w] -> logits [b,classes,h,w]; h and w are multiples of 4."""

    def __init__(self, classes: int, *, upsample: bool) -> None:
        super().__init__()
        up = _bilinear if upsample else _transposed
        self.down1, self.down2 = _convolutions(1, 8), _convolutions(8, 16)
        self.bottom = _convolutions(16, 32)
        self.up2, self.join2 = up(32), _convolutions(32, 16)
        self.up1, self.join1 = up(16), _convolutions(16, 8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down1(x)
        coarse = self.down2(self.pool(fine))
        y = self.up2(self.bottom(self.pool(coarse)))
        y = self.up1(self.join2(torch.cat([coarse, y], 1)))
        logits: torch.Tensor = self.head(self.join1(torch.cat([fine, y], 1)))
        return logits


def unet() -> ModelSpec:
    """Labels are int64 [b,32,32], of 3 classes."""
    return ModelSpec(UNet(3, upsample=False), torch.zeros(1, 1, 32, 32), "cross_entropy")


def unet_upsample() -> ModelSpec:
    """The same with bilinear interpolation."""
    return ModelSpec(UNet(3, upsample=True), torch.zeros(1, 1, 32, 32), "cross_entropy")
