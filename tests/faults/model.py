"""The model of the fault tests: five blocks of 16 KiB, so that transfers can be cut half way."""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec


def wide_mlp() -> ModelSpec:
    """8 features, 3 classes, 18,003 parameters."""
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(8, 1500), nn.ReLU(), nn.Linear(1500, 3))
    return ModelSpec(module, torch.zeros(1, 8), "cross_entropy")
