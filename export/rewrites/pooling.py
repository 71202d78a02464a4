"""Pooling of images, channels last, without indices; activations after max pooling.

onnxruntime's MaxPool takes twenty times as long when it returns indices, and scattering by them
is slow as well. Gradients are PyTorch's to the last tie: each window's goes to the first of its
largest elements.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from export.operators.rows import add_rows, take_rows, with_border
from export.rewrites.convolution import convolution, convolution_rows
from export.rewrites.geometry import Geometry, kernel_sources, kernel_table
from export.rewrites.nodes import argument, insert, is_call, pair, replace, value
from export.rewrites.normalization import add_channels

aten = torch.ops.aten

_MONOTONE = {
    aten.relu.default: aten.relu.default,
    aten.relu_.default: aten.relu.default,
    aten.relu6.default: aten.relu6.default,
    aten.hardtanh.default: aten.hardtanh.default,
}
"""Activations that never fall, with no gradient where they are flat: they commute with maxima."""
_FLOATS_MAX = 4 << 20
"""Most numbers per example in all windows (16 MiB); beyond it the operator is kept."""


def rewrite(graph: fx.Graph) -> int:
    """max_pool2d(relu(x)) -> relu(max_pool2d(x)): the same values and gradients, on fewer elements.

    Ties that ReLU makes have no gradient anyway.
    """
    changed = 0
    for node in list(graph.nodes):
        if not is_call(node, aten.max_pool2d.default):
            continue
        activation = node.args[0]
        if not is_call(activation, *_MONOTONE) or len(activation.users) > 1:
            continue
        x = activation.args[0]
        if is_call(activation, aten.relu_.default) and len(x.users) > 1:
            continue
        pooled = insert(graph, node, aten.max_pool2d.default, x, *node.args[1:])
        rest = activation.args[1:]
        replace(node, insert(graph, node, _MONOTONE[activation.target], pooled, *rest))
        graph.erase_node(activation)
        changed += 1
    return changed


def max_pool(graph: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node | None:
    """aten.max_pool2d of x[b,h,w,c]; windows that tile a convolution's output are part of it."""
    geometry = _geometry(node, x, argument(node, 3, 0), argument(node, 4, 1))
    if geometry is None:
        return None
    bare = geometry.padding == (0, 0) and geometry.dilation == (1, 1)
    image = node.args[0]
    assert isinstance(image, fx.Node)
    if (
        bare
        and geometry.kernel == geometry.stride
        and not argument(node, 5, False)
        and x.target is convolution
        and len(x.users) == len(image.users) == 1
    ):
        inputs, convolved = x.args[:3], cast(Geometry, x.args[3])
        convolved = convolved._replace(window=geometry.kernel)
        return insert(graph, node, convolution_max_pool, *inputs, convolved)
    return insert(graph, node, largest_of_windows, x, geometry)


def average_pool(graph: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node | None:
    """aten.avg_pool2d of x[b,h,w,c], where all windows have the same divisor."""
    padding, ceil_mode = pair(argument(node, 3, 0)), argument(node, 4, False)
    if ceil_mode or argument(node, 6) is not None:
        return None
    if padding != (0, 0) and not argument(node, 5, True):
        return None
    geometry = _geometry(node, x, padding, 1)
    return None if geometry is None else insert(graph, node, mean_of_windows, x, geometry)


def convolution_max_pool(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
) -> torch.Tensor:
    """x[b,h,w,c] -> [b,h',w',o]: the largest of each of the geometry's windows."""
    windows = geometry.window[0] * geometry.window[1]
    rows = convolution_rows(x, weight, geometry).reshape(x.shape[0], windows, -1)
    y: torch.Tensor = _Largest.apply(rows)  # type: ignore[no-untyped-call]
    y = y.reshape(-1, *geometry.pooled, weight.shape[0])
    # Behind the maximum there are fewer elements to add the bias to, and gradients to sum up.
    return y if bias is None else add_channels(y, bias)


def largest_of_windows(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """x[b,h,w,c] -> [b,h',w',c]: max pooling with the geometry's kernel."""
    windows: torch.Tensor = _Windows.apply(x, geometry, -torch.inf)  # type: ignore[no-untyped-call]
    y: torch.Tensor = _Largest.apply(windows)  # type: ignore[no-untyped-call]
    return y.reshape(-1, *geometry.output, x.shape[3])


def mean_of_windows(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """x[b,h,w,c] -> [b,h',w',c]: average pooling with the geometry's kernel."""
    windows: torch.Tensor = _Windows.apply(x, geometry, 0.0)  # type: ignore[no-untyped-call]
    return windows.mean(1).reshape(-1, *geometry.output, x.shape[3])


class _Windows(torch.autograd.Function):
    """x[b,h,w,c] -> [b,kernel,h'*w'*c]: first places of all windows, second places, ..."""

    @staticmethod
    def forward(x: torch.Tensor, geometry: Geometry, outside: float) -> torch.Tensor:
        kernel = geometry.kernel[0] * geometry.kernel[1]
        rows = x.reshape(-1, geometry.places_in, x.shape[3])
        rows = take_rows(rows, kernel_table(geometry, kernel_first=True), outside)
        return rows.reshape(-1, kernel, geometry.places_out * x.shape[3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        del output
        ctx.shape, ctx.geometry = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        geometry, channels = ctx.geometry, ctx.shape[3]
        kernel = geometry.kernel[0] * geometry.kernel[1]
        rows = grad.reshape(-1, kernel * geometry.places_out, channels)
        rows = add_rows(with_border(rows), kernel_sources(geometry, kernel_first=True))
        return rows.reshape(-1, *ctx.shape[1:]), None, None


class _Largest(torch.autograd.Function):
    """x[b,windows,n] -> [b,1,n]."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.amax(1, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        x, largest = ctx.saved_tensors
        hits, parts = x == largest, []
        for window in range(x.shape[1] - 1):
            parts.append(grad * hits.narrow(1, window, 1).to(grad.dtype))
            grad = grad - parts[-1]
        return torch.cat([*parts, grad], 1)


def _geometry(node: fx.Node, x: fx.Node, padding: Any, dilation: Any) -> Geometry | None:
    """Of a pooling node whose input is `x`, channels last; None where it is better left alone."""
    before, after = value(x), value(node)
    if before is None or after is None:
        return None
    sizes = (*before.shape[1:], *after.shape[2:])
    if not all(isinstance(size, int) for size in sizes):
        return None
    kernel = pair(node.args[1])
    geometry = Geometry(
        size=(int(before.shape[1]), int(before.shape[2])),
        kernel=kernel,
        stride=pair(argument(node, 2) or kernel),
        padding=pair(padding),
        dilation=pair(dilation),
        output=(int(after.shape[2]), int(after.shape[3])),
    )
    floats = geometry.places_out * kernel[0] * kernel[1] * int(before.shape[3])
    return geometry if floats <= _FLOATS_MAX else None
