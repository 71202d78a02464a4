"""Max pooling, adaptive too, and order statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from export.decompositions.padding import constant_pad

aten = torch.ops.aten


def max_pool_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Gradient of x[b,c,...]: each window's goes to the first of its largest elements."""
    rank = len(kernel_size)
    stride = stride or kernel_size
    plain = list(stride) == list(kernel_size) and not any(padding) and not ceil_mode
    if rank == 2 and plain and all(d == 1 for d in dilation) and x.dim() == 4:
        return _tiled_max_pool2d_backward(grad, x, kernel_size)
    return _scattered(grad, x, indices, rank)


def _scattered(
    grad: torch.Tensor, x: torch.Tensor, indices: torch.Tensor, rank: int
) -> torch.Tensor:
    """Each gradient added where `indices`, into the flat spatial elements, say."""
    shape = x.shape[-rank:]
    flat = x.new_zeros((*x.shape[:-rank], math.prod(shape)))
    rows = [*grad.shape[:-rank], math.prod(grad.shape[-rank:])]
    flat = flat.scatter_add(-1, indices.reshape(rows), grad.reshape(rows))
    return flat.reshape(x.shape)


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


def adaptive_max_pool(
    x: torch.Tensor, output_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest elements of windows that cover x, and where they are in the flat spatial elements."""
    rank = len(output_size)
    sizes = [int(size) for size in x.shape[-rank:]]
    if rank == 2 and all(size % out == 0 for size, out in zip(sizes, output_size, strict=True)):
        kernel = [size // out for size, out in zip(sizes, output_size, strict=True)]
        values, indices = aten.max_pool2d_with_indices(x, kernel, kernel)
        return values, indices
    windows = _windows(sizes, output_size)
    table = torch.tensor(windows)
    gathered = x.flatten(-rank).index_select(-1, table.flatten())
    gathered = gathered.reshape(*x.shape[:-rank], *table.shape)
    values, places = gathered.max(-1)
    indices = (torch.nn.functional.one_hot(places, table.shape[1]) * table).sum(-1)
    shape = (*x.shape[:-rank], *output_size)
    return values.reshape(shape), indices.reshape(shape)


def _windows(sizes: Sequence[int], output_size: Sequence[int]) -> list[list[int]]:
    """Of each output the flat places of its window, the first repeated to equal lengths."""
    spans = [
        [range(i * size // out, -((i + 1) * size // -out)) for i in range(out)]
        for size, out in zip(sizes, output_size, strict=True)
    ]
    windows = []
    for cell in itertools.product(*spans):
        places = []
        for place in itertools.product(*cell):
            flat = 0
            for index, size in zip(place, sizes, strict=True):
                flat = flat * size + index
            places.append(flat)
        windows.append(places)
    longest = max(map(len, windows))
    return [places + places[:1] * (longest - len(places)) for places in windows]


def kthvalue(
    x: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k-th smallest elements and their indices."""
    values, indices = torch.topk(x, k, dim, largest=False)
    place = slice(k - 1, k)
    values, indices = (part.movedim(dim, -1)[..., place] for part in (values, indices))
    if keepdim:
        return values.movedim(-1, dim), indices.movedim(-1, dim)
    return values.squeeze(-1), indices.squeeze(-1)


def median(x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower median and its index."""
    return kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def _adaptive_backward(rank: int) -> Callable[..., torch.Tensor]:
    """Gradient of x: each output's goes where its largest element is."""

    def backward(grad: torch.Tensor, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return _scattered(grad, x, indices, rank)

    return backward


TABLE: dict[Any, Callable[..., Any]] = {
    aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    aten.max_pool3d_with_indices_backward.default: max_pool_backward,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.adaptive_max_pool3d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d_backward.default: _adaptive_backward(2),
    aten.adaptive_max_pool3d_backward.default: _adaptive_backward(3),
    aten.kthvalue.default: kthvalue,
    aten.median.dim: median,
}
