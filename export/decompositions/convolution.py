"""Gradients of convolutions and transposed convolutions, as convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


def convolution_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: list[int] | None,  # noqa: ARG001 - the signature of the operator
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],  # noqa: ARG001
    groups: int,
    output_mask: list[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of x[b,ci,...], weight[co,ci/groups,...] and bias[co], any spatial rank.

    A transposed convolution has weight[ci,co/groups,...].
    """
    rank = x.dim() - 2
    stride, padding, dilation = (_each(value, rank) for value in (stride, padding, dilation))
    grad_x = grad_weight = grad_bias = None
    if output_mask[0]:
        backward = _transposed_input_gradient if transposed else _input_gradient
        grad_x = backward(grad, x, weight, stride, padding, dilation, groups)
    if output_mask[1]:
        # The transposed convolution of x is the input's gradient of a convolution whose output
        # has the shape of x: in the weight's gradient the two change places.
        pair = (x, grad) if transposed else (grad, x)
        grad_weight = _weight_gradient(*pair, weight, stride, padding, dilation, groups)
    if output_mask[2]:
        grad_bias = grad.sum([0, *range(2, 2 + rank)])
    return grad_x, grad_weight, grad_bias


def _each(values: list[int], rank: int) -> list[int]:
    """One value for each spatial dimension; PyTorch also accepts one for all."""
    return list(values) * rank if len(values) == 1 else list(values)


def _input_gradient(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    extra = [
        x.shape[2 + i]
        - (grad.shape[2 + i] - 1) * stride[i]
        + 2 * padding[i]
        - dilation[i] * (weight.shape[2 + i] - 1)
        - 1
        for i in range(x.dim() - 2)
    ]
    result: torch.Tensor = aten.convolution(
        grad, weight, None, stride, padding, dilation, True, extra, groups
    )
    return result


def _transposed_input_gradient(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    none = [0] * (x.dim() - 2)
    result = aten.convolution(grad, weight, None, stride, padding, dilation, False, none, groups)
    return _crop(result, x)


def _weight_gradient(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """A convolution with the batch as channels, and stride and dilation exchanged."""
    rank = x.dim() - 2
    if groups > 1:
        # [b, g*ci, ...] -> [ci, g*b, ...]: one group of b channels for each group of the weight.
        x = x.reshape(-1, groups, x.shape[1] // groups, *x.shape[2:])
        x = x.permute(2, 1, 0, *range(3, 3 + rank)).reshape(weight.shape[1], -1, *x.shape[3:])
    else:
        x = x.transpose(0, 1)
    result = aten.convolution(
        x, grad.transpose(0, 1), None, dilation, padding, stride, False, [0] * rank, groups
    ).transpose(0, 1)
    return _crop(result, weight)


def _crop(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Inputs that the stride skipped at the border make the result longer than its target."""
    for axis in range(2, target.dim()):
        if result.shape[axis] != target.shape[axis]:
            result = result.narrow(axis, 0, target.shape[axis])
    return result


TABLE: dict[Any, Callable[..., Any]] = {aten.convolution_backward.default: convolution_backward}
