"""Activations that PyTorch leaves whole, and memory without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


def empty_permuted(size: list[int], physical_layout: list[int], **options: Any) -> torch.Tensor:
    """Zeros: memory without values is no function of anything."""
    del physical_layout
    return torch.zeros(size, dtype=options.get("dtype"))


def hardshrink(x: torch.Tensor, limit: float = 0.5) -> torch.Tensor:
    """x where |x| is above the limit, otherwise 0."""
    return torch.where(x.abs() > limit, x, 0.0)


def softshrink(x: torch.Tensor, limit: float = 0.5) -> torch.Tensor:
    """x moved towards 0 by the limit, and 0 within it."""
    return torch.where(x > limit, x - limit, torch.where(x < -limit, x + limit, 0.0))


def shrink_backward(grad: torch.Tensor, x: torch.Tensor, limit: float) -> torch.Tensor:
    """Gradient of both."""
    return torch.where(x.abs() > limit, grad, 0.0)


def rrelu_with_noise(
    x: torch.Tensor,
    noise: torch.Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: object = None,
) -> Any:
    """In evaluation a leaky ReLU with the mean slope; in training it is random, and stays."""
    del noise, generator
    if training:
        return NotImplemented
    return torch.where(x > 0, x, x * ((lower + upper) / 2))


def rrelu_with_noise_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    lower: float,
    upper: float,
    training: bool,
    self_is_result: bool,
) -> torch.Tensor:
    """Gradient of the above."""
    del self_is_result
    if training:
        return grad * noise
    return torch.where(x > 0, grad, grad * ((lower + upper) / 2))


def clamp_min_in_place(x: torch.Tensor, limit: float) -> torch.Tensor:
    """Margin losses use it, and PyTorch's own wants a batch of known size."""
    return x.copy_(x.clamp(min=limit))


TABLE: dict[Any, Callable[..., Any]] = {
    aten.empty_permuted.default: empty_permuted,
    aten.clamp_min_.default: clamp_min_in_place,
    aten.hardshrink.default: hardshrink,
    aten.hardshrink_backward.default: shrink_backward,
    aten.softshrink.default: softshrink,
    aten.softshrink_backward.default: shrink_backward,
    aten.rrelu_with_noise.default: rrelu_with_noise,
    aten.rrelu_with_noise_backward.default: rrelu_with_noise_backward,
}
