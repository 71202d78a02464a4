"""Batch normalisation of images channels last.

onnxruntime broadcasts a vector of few channels five times slower than one as long as an image
row, so statistics and factors are repeated along the row: x[b,h,w,c] is worked on as
[b * h, w * c].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """x[b,h,w,c] -> the same shape; as `aten.batch_norm`, which moves running statistics too."""
    if not training:
        assert running_mean is not None
        assert running_var is not None
        factor = (running_var + eps).rsqrt()
        factor = factor if weight is None else factor * weight
        offset = -running_mean * factor
        offset = offset if bias is None else offset + bias
        width = x.shape[2]
        y = _rows(x) * factor.repeat(width) + offset.repeat(width)
        return y.reshape(x.shape)
    normalized: tuple[Tensor, ...] = _Normalized.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    y, mean, var = normalized
    if running_mean is not None and running_var is not None:
        count = x.shape[0] * x.shape[1] * x.shape[2]
        with torch.no_grad():
            running_mean.copy_(running_mean * (1 - momentum) + mean * momentum)
            unbiased = var * (count / (count - 1))
            running_var.copy_(running_var * (1 - momentum) + unbiased * momentum)
    return y


def add_channels(x: Tensor, bias: Tensor) -> Tensor:
    """x[b,h,w,c] + bias[c]."""
    return (_rows(x) + bias.repeat(x.shape[2])).reshape(x.shape)


class _Normalized(torch.autograd.Function):
    """Also returns the mean and the biased variance of each channel."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[2]
        mean = _per_channel(_rows(x).mean(0), width).mean(0)
        centred = _rows(x) - mean.repeat(width)
        var = _per_channel((centred * centred).mean(0), width).mean(0)
        factor = (var + eps).rsqrt()
        y = centred * (factor if weight is None else factor * weight).repeat(width)
        y = y if bias is None else y + bias.repeat(width)
        return y.reshape(x.shape), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.biased = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        width, count = x.shape[2], x.shape[0] * x.shape[1] * x.shape[2]
        grad = _rows(grad)
        # The forward pass computed these two: common subexpressions are merged later.
        centred = _rows(x) - mean.repeat(width)
        factor = (var + ctx.eps).rsqrt()
        scale = factor if weight is None else factor * weight
        total = _per_channel(grad.sum(0), width).sum(0)
        along = _per_channel((grad * centred).sum(0), width).sum(0)
        slope = scale * factor * factor * along / count
        grad_x = grad * scale.repeat(width) - centred * slope.repeat(width)
        grad_x = grad_x - (scale * total / count).repeat(width)
        grad_weight = None if weight is None else along * factor
        return grad_x.reshape(x.shape), grad_weight, total if ctx.biased else None, None


def _rows(x: Tensor) -> Tensor:
    """x[b,h,w,c] -> [b * h, w * c]."""
    return x.reshape(-1, x.shape[2] * x.shape[3])


def _per_channel(row: Tensor, width: int) -> Tensor:
    """[w * c] -> [w, c]."""
    return row.reshape(width, -1)
