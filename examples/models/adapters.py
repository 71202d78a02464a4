"""Fine-tuning where little is trained: the rest stays as it came, and only what is trained
travels. Load your own pretrained weights where these are random."""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


def _pretrained() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def last_layer() -> ModelSpec:
    """Everything but the last layer is frozen."""
    module = _pretrained().requires_grad_(False)
    module[-1].requires_grad_(True)
    return ModelSpec(module, torch.zeros(1, 3, 32, 32), "cross_entropy")


class LoRA(nn.Module):
    """A frozen linear layer and a trained product of two thin matrices (Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x) + (x @ self.down.T) @ self.up.T * self.scale
        return y


def lora() -> ModelSpec:
    """Low-rank adapters beside the linear layers."""
    module = _pretrained().requires_grad_(False)
    for index, layer in enumerate(module):
        if isinstance(layer, nn.Linear):
            module[index] = LoRA(layer, rank=4, alpha=8)
    return ModelSpec(module, torch.zeros(1, 3, 32, 32), "cross_entropy")
