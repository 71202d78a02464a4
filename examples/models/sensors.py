"""Windows of sensor data [b, channels, time]: which activity, or state, is it?"""

from __future__ import annotations

import torch
from torch import nn

from export import ModelSpec

CHANNELS, TIME, CLASSES = 6, 64, 5


def sensor_cnn() -> ModelSpec:
    """1-D convolutions and average pooling."""
    module = nn.Sequential(
        nn.Conv1d(CHANNELS, 16, 7, padding=3),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2, groups=2),
        nn.LeakyReLU(0.1),
        nn.MaxPool1d(3, 2, padding=1),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128, CLASSES),
    )
    return ModelSpec(module, torch.zeros(1, CHANNELS, TIME), "cross_entropy")


class Recurrent(nn.Module):
    """A recurrent layer's last output is classified."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.layer(x.transpose(1, 2))
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


def sensor_gru() -> ModelSpec:
    """A gated recurrent unit over the time."""
    module = Recurrent(nn.GRU(CHANNELS, 24, batch_first=True), 24)
    return ModelSpec(module, torch.zeros(1, CHANNELS, TIME), "cross_entropy")


def sensor_lstm() -> ModelSpec:
    """Two layers, each over the time in both directions."""
    layer = nn.LSTM(CHANNELS, 12, 2, batch_first=True, bidirectional=True)
    return ModelSpec(Recurrent(layer, 24), torch.zeros(1, CHANNELS, TIME), "cross_entropy")
