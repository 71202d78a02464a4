"""Plans that every trainer is compared with PyTorch on, and how far it may be off.

Imported where torch is (`tests.expected`) and where it is not.
"""

from __future__ import annotations

from fedtide.plan import Plan

EXAMPLES = 36
"""Local examples: the last batch of each epoch is smaller."""
STEPS = (1, 50)

_SGD = {"epochs": 13, "batch_size": 10, "learning_rate": 0.05, "seed": 3}
_ADAMW = {**_SGD, "optimizer": "adamw", "learning_rate": 0.01}
_SETTINGS: dict[str, dict[str, object]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight_decay": {"momentum": 0.5, "weight_decay": 0.05},
    "adamw": {},
    "adamw_decay": {"betas": (0.8, 0.95), "epsilon": 1e-6, "weight_decay": 0.1},
    "proximal": {"proximal_mu": 0.5},
    "clip": {"clip_norm": 0.2, "momentum": 0.9},
    "all_of_adamw": {"clip_norm": 0.2, "proximal_mu": 0.5, "weight_decay": 0.1},
    "accumulated": {"examples_at_once": 4},
    "accumulated_adamw": {"examples_at_once": 3},
    "fedsgd": {"batch_size": "all", "examples_at_once": 8, "epochs": 50},
}
PLANS: dict[str, Plan] = {
    name: Plan(**({**(_ADAMW if "adamw" in name else _SGD), **settings}))  # type: ignore[arg-type]
    for name, settings in _SETTINGS.items()
}
PLANS_OF: dict[str, tuple[str, ...]] = {
    "tiny_mlp": tuple(PLANS),
    "tiny_norm": ("sgd", "momentum", "adamw", "proximal", "accumulated"),
    "tiny_tokens": ("sgd", "accumulated", "adamw", "clip"),
    "tiny_dropout": ("sgd", "accumulated", "fedsgd"),
}
"""Models of `tests/models.py`, and the plans each is trained with."""

TOLERANCES: dict[int, float] = {1: 1e-6, 50: 1e-5}
"""Steps -> largest absolute difference of any value, for every plan, model and runtime.

Measured on x86-64: 6e-8 after one step, 1.3e-6 after fifty (batch normalisation with momentum).
"""
