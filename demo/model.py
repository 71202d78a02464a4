"""The demo's model: wide and shallow, because averages of wide models are good models.

Devices that know two digits each pull a model in ten directions. Measured on this data, with half
of the devices missing in a round: 1,024 hidden units end one to three points above 256, and above
a small convolutional network, which needs more rounds than a demo has.
"""

from __future__ import annotations

import torch

from export import ModelSpec

HIDDEN = 1024


def digits_mlp() -> ModelSpec:
    """64 pixels -> 1,024 -> 10 digits: 76,810 parameters, the same ones every time."""
    torch.manual_seed(1998)
    module = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, 10),
    )
    return ModelSpec(module, torch.zeros(1, 1, 8, 8), "cross_entropy", "digits-mlp")
