"""Models of the kinds that people train, tiny, beside those of `examples/models`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from export import ModelSpec
from export.command import load_function

_EXAMPLES = Path(__file__).parents[2] / "examples" / "models"


def examples() -> dict[str, Callable[[], object]]:
    """Every function of `examples/models` that returns a model, by `file:function`."""
    found = {}
    for path in sorted(_EXAMPLES.glob("*.py")):
        for name in re.findall(r"^def ([a-z]\w*)\(\) -> ModelSpec", path.read_text(), re.MULTILINE):
            found[f"{path.name}:{name}"] = load_function(f"{path}:{name}")[0]
    return found


def dropouts() -> ModelSpec:
    """Dropout of elements, of channels, and the one for SELU."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Dropout2d(0.3),
        nn.SELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.AlphaDropout(0.2),
        nn.Linear(64, 8),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )
    return ModelSpec(module, torch.zeros(1, 1, 8, 8), "cross_entropy")


class _Tied(nn.Module):
    """One layer used twice, and a weight with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.decode(torch.tanh(self.encode(self.encode(x)))))
        return y


def tied() -> ModelSpec:
    """Shared weights."""
    return ModelSpec(_Tied(), torch.zeros(1, 6), "mse")


class _FrozenNorm(nn.Sequential):
    """Batch normalisation that stays in evaluation mode, as for small local data."""

    def train(self, mode: bool = True) -> _FrozenNorm:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self


def frozen_norm() -> ModelSpec:
    """The statistics are used and never change."""
    module = _FrozenNorm(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    return ModelSpec(module, torch.zeros(1, 1, 8, 8), "cross_entropy")


def segmentation() -> ModelSpec:
    """Class weights and pixels that do not count."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Mish(), nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(4, 3, 1),
    )  # fmt: skip
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), ignore_index=-1)
    return ModelSpec(module, torch.zeros(1, 1, 8, 8), loss)


VARIANTS: dict[str, Callable[[], object]] = {
    function.__name__: function for function in (dropouts, tied, frozen_norm, segmentation)
}
