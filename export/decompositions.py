"""Backward operators of PyTorch in terms of operators that ONNX has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import core_aten_decompositions

aten = torch.ops.aten


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Core ATen decompositions and ours."""
    table: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    table[aten.constant_pad_nd.default] = constant_pad
    table[aten.convolution_backward.default] = convolution_backward
    table[aten.max_pool2d_with_indices_backward.default] = max_pool2d_backward
    table[aten.empty_permuted.default] = empty_permuted
    return table


def empty_permuted(size: list[int], physical_layout: list[int], **options: Any) -> torch.Tensor:
    """Zeros: memory without values is no function of anything."""
    del physical_layout
    return torch.zeros(size, dtype=options.get("dtype"))


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
    """Gradients of x[b,ci,...], weight[co,ci/groups,...] and bias[co], any spatial rank."""
    if transposed:
        raise NotImplementedError("aten.convolution_backward of a transposed convolution")
    rank = x.dim() - 2
    grad_x = grad_weight = grad_bias = None
    if output_mask[0]:
        extra = [
            x.shape[2 + i]
            - (grad.shape[2 + i] - 1) * stride[i]
            + 2 * padding[i]
            - dilation[i] * (weight.shape[2 + i] - 1)
            - 1
            for i in range(rank)
        ]
        grad_x = aten.convolution(
            grad, weight, None, stride, padding, dilation, True, extra, groups
        )
    if output_mask[1]:
        grad_weight = _weight_gradient(grad, x, weight, stride, padding, dilation, groups)
    if output_mask[2]:
        grad_bias = grad.sum([0, *range(2, 2 + rank)])
    return grad_x, grad_weight, grad_bias


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
    for i in range(rank):
        # Inputs that the stride skipped at the border make the result longer than the kernel.
        if result.shape[2 + i] != weight.shape[2 + i]:
            result = result.narrow(2 + i, 0, weight.shape[2 + i])
    return result  # type: ignore[no-any-return]


def max_pool2d_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Gradient of x[b,c,h,w]: each window's goes to the first of its largest elements."""
    stride = stride or kernel_size
    plain = list(stride) == list(kernel_size) and not any(padding) and not ceil_mode
    if plain and all(d == 1 for d in dilation) and x.dim() == 4:
        return _tiled_max_pool2d_backward(grad, x, kernel_size)
    flat = x.new_zeros((*x.shape[:-2], x.shape[-2] * x.shape[-1]))
    rows = [*grad.shape[:-2], grad.shape[-2] * grad.shape[-1]]
    return flat.scatter_add(-1, indices.reshape(rows), grad.reshape(rows)).reshape(x.shape)


def _tiled_max_pool2d_backward(
    grad: torch.Tensor, x: torch.Tensor, kernel_size: list[int]
) -> torch.Tensor:
    """The same without indices, which cost onnxruntime's MaxPool twenty times its own time.

    With windows that tile x, the elements at one place of every window are a strided slice.
    """
    kernel_h, kernel_w = kernel_size
    channels, height, width = x.shape[1:]
    # The forward pass computed this; common subexpressions are merged later.
    y = aten.max_pool2d_with_indices(x, kernel_size, kernel_size)[0]
    out_h, out_w = y.shape[2:]
    rest, places = grad, []
    for place in range(math.prod(kernel_size) - 1):
        row, column = divmod(place, kernel_w)
        hit = x[:, :, row : out_h * kernel_h : kernel_h, column : out_w * kernel_w : kernel_w] == y
        places.append(torch.where(hit, rest, 0.0))
        rest = torch.where(hit, 0.0, rest)
    places.append(rest)
    rows = [
        torch.stack(places[i * kernel_w : (i + 1) * kernel_w], -1).reshape(
            -1, channels, out_h, 1, out_w * kernel_w
        )
        for i in range(kernel_h)
    ]
    tiled = torch.cat(rows, 3).reshape(-1, channels, out_h * kernel_h, out_w * kernel_w)
    return constant_pad(tiled, [0, width - out_w * kernel_w, 0, height - out_h * kernel_h])


def constant_pad(x: torch.Tensor, pad: list[int], value: float = 0.0) -> torch.Tensor:
    """Pad or crop the last dimensions; `pad` is before, after of the last, then of the others.

    PyTorch's own converts sizes to integers, which would fix the batch.
    """
    for index in range(len(pad) // 2):
        axis = x.dim() - 1 - index
        before, after = pad[2 * index : 2 * index + 2]
        start, end = max(0, -before), x.shape[axis] - max(0, -after)
        if (before, after) == (0, 0):
            continue
        kept = x.narrow(axis, start, end - start)
        border = torch.full_like(x.narrow(axis, 0, 1), value)
        sizes = [-1] * x.dim()
        parts = [kept]
        if before > 0:
            sizes[axis] = before
            parts.insert(0, border.expand(sizes))
        if after > 0:
            sizes[axis] = after
            parts.append(border.expand(sizes))
        x = torch.cat(parts, axis)
    return x
