"""Products, windows along an axis, quotients, distances, norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from export.decompositions.padding import constant_pad

aten = torch.ops.aten


def cumprod(x: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Products of x[..., :i + 1, ...] along `dim`; n * n elements, for short axes."""
    x = x.to(dtype) if dtype is not None else x
    moved = x.movedim(dim, -1)
    size = moved.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool).tril()
    return torch.where(lower, moved.unsqueeze(-2), 1.0).prod(-1).movedim(-1, dim)


def argmax(x: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """ONNX's ArgMax takes no bool."""
    if x.dtype is not torch.bool:
        return NotImplemented
    return aten.argmax.default(x.to(torch.int32), dim, keepdim)


def unfold_backward(
    grad: torch.Tensor, input_sizes: list[int], dim: int, size: int, step: int
) -> torch.Tensor:
    """Gradient of x from that of x.unfold(dim, size, step): windows added where they overlap.

    Pieces of `step` elements of all windows lie side by side: one shifted sum for each piece.
    """
    dim = dim % len(input_sizes)
    windows = grad.movedim(dim, -2)  # [..., count, size]
    count = windows.shape[-2]
    pieces = -(size // -step)
    windows = constant_pad(windows, [0, pieces * step - size])
    total = None
    for piece in range(pieces):
        part = windows.narrow(-1, piece * step, step).flatten(-2)
        end = (pieces - 1 - piece) * step
        part = constant_pad(part, [piece * step, end])
        total = part if total is None else total + part
    assert total is not None
    length = (count + pieces - 1) * step
    total = constant_pad(total, [0, input_sizes[dim] - length])
    return total.movedim(-1, dim)


def floor_divide(x: torch.Tensor, other: Any) -> torch.Tensor:
    """The largest integer not above the quotient."""
    result: torch.Tensor = torch.div(x, other, rounding_mode="floor")
    return result


def cdist_forward(
    x: torch.Tensor, y: torch.Tensor, p: float, compute_mode: int | None
) -> torch.Tensor:
    """Distances [..., n, m] of the rows of x[..., n, d] and y[..., m, d]."""
    del compute_mode
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    distances: torch.Tensor = torch.linalg.vector_norm(difference, p, -1)
    return distances


def cdist_backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, p: float, distances: torch.Tensor
) -> torch.Tensor:
    """Gradient of x; that of equal rows is 0."""
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    grad, distances = grad.unsqueeze(-1), distances.unsqueeze(-1)
    if p == 1:
        slopes = difference.sign()
    elif p == float("inf"):
        slopes = torch.where(difference.abs() == distances, difference.sign(), 0.0)
    else:
        safe = torch.where(distances == 0, 1.0, distances)
        slopes = difference if p == 2 else difference.sign() * difference.abs() ** (p - 1)
        slopes = torch.where(distances == 0, 0.0, slopes / safe ** (p - 1))
    return (grad * slopes).sum(-2)


def trilinear(
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sumdim: list[int],
    unroll_dim: int = 1,
) -> torch.Tensor:
    """Sum over `sumdim` of the product, each factor with new axes of one element: nn.Bilinear."""
    del unroll_dim
    factors = []
    for factor, axes in ((x, expand1), (y, expand2), (z, expand3)):
        wide = factor
        for axis in sorted(axes):
            wide = wide.unsqueeze(axis)
        factors.append(wide)
    product = factors[0] * factors[1] * factors[2]
    return product.sum(sumdim) if sumdim else product


def weight_norm_backward(
    grad: torch.Tensor, v: torch.Tensor, g: torch.Tensor, norms: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of v and g from that of the weight g * v / norms, the norms over all but `dim`."""
    along = (grad * v).sum([axis for axis in range(v.dim()) if axis != dim % v.dim()], keepdim=True)
    scale = g / norms
    return scale * (grad - v * (along / (norms * norms))), along / norms


TABLE: dict[Any, Callable[..., Any]] = {
    aten.cumprod.default: cumprod,
    aten.argmax.default: argmax,
    aten.unfold_backward.default: unfold_backward,
    aten.floor_divide.default: floor_divide,
    aten._weight_norm_interface_backward.default: weight_norm_backward,
    aten._trilinear.default: trilinear,
    aten._cdist_forward.default: cdist_forward,
    aten._cdist_backward.default: cdist_backward,
}
