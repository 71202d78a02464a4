"""2-D convolutions as matrix products of rows, channels last.

onnxruntime's Conv takes about twice the time of the matrix product in it, and the two
convolutions of its gradient three times. Two forms, whichever moves less memory:

- columns: the input under the whole kernel side by side, [places, kernel * channels], times the
  weight ("im2col");
- rows: the input under one row of the kernel side by side, times all rows of the kernel at once;
  what belongs to the rows of the output is then added up. That is the same number of
  multiplications with 1/kernel_h of the memory. Only for a vertical stride of 1.

Both take their weight gradient from the same matrix, and move rows of `channels` floats only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from export.operators.rows import add_rows, take_rows, with_border
from export.rewrites.geometry import (
    Geometry,
    column_sources,
    column_table,
    kernel_sources,
    kernel_table,
    row_sources,
    row_table,
    stack_table,
)
from export.rewrites.images import enter, leave
from export.rewrites.nodes import argument, insert, is_call, pair, value
from export.rewrites.normalization import add_channels

aten = torch.ops.aten

_FLOATS_MAX = 4 << 20
"""Most numbers per example in an intermediate matrix (16 MiB); beyond it Conv is kept."""

_CHANNELS_FEW = 8
"""Moving fewer floats at once costs as much as moving eight: columns are made in two steps."""


def rewrite(graph: fx.Graph) -> int:
    """Convolutions of [b,c,h,w] with one group, any stride, padding and dilation."""
    changed = 0
    for node in list(graph.nodes):
        if not is_call(node, aten.conv2d.default, aten.conv2d.padding):
            continue
        geometry = _geometry(node)
        if geometry is None:
            continue
        x, weight, bias = node.args[0], node.args[1], argument(node, 2)
        leave(insert(graph, node, convolution, enter(x, node), weight, bias, geometry), node)
        changed += 1
    return changed


def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
) -> torch.Tensor:
    """x[b,h,w,c] and weight[o,c,kernel_h,kernel_w] -> [b,h',w',o]."""
    y = convolution_rows(x, weight, geometry).reshape(-1, *geometry.output, weight.shape[0])
    return y if bias is None else add_channels(y, bias)


def convolution_rows(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """x[b,h,w,c] and weight[o,c,kernel_h,kernel_w] -> [b,places_out,o] in the geometry's order."""
    form = _Rows if _prefers_rows(geometry, weight) else _Columns
    y: torch.Tensor = form.apply(x, weight, geometry)  # type: ignore[no-untyped-call]
    return y


class _Form(torch.autograd.Function):
    """Both forms go back from the image, the weight and the geometry."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[2]


class _Columns(_Form):
    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        y = _columns(x, geometry) @ _by_place(weight).T
        return y.reshape(-1, geometry.places_out, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, weight), geometry = ctx.saved_tensors, ctx.geometry
        outputs, channels = weight.shape[:2]
        grad = grad.reshape(-1, outputs)
        # The forward pass made these columns: common subexpressions are merged later.
        by_place = _columns(x, geometry).T @ grad
        by_place = by_place.reshape(-1, channels, outputs).permute(2, 1, 0)
        grad_weight = by_place.reshape(weight.shape)
        if _is_plain(geometry):
            grad_x = grad @ _by_place(weight)
        else:
            bordered = with_border(grad.reshape(-1, geometry.places_out, outputs))
            columns = bordered.reshape(-1, outputs) @ _by_place(weight)
            places = (geometry.places_out + 1) * geometry.kernel[0] * geometry.kernel[1]
            grad_x = add_rows(columns.reshape(-1, places, channels), kernel_sources(geometry))
        return grad_x.reshape(x.shape), grad_weight, None


class _Rows(_Form):
    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        outputs = weight.shape[0]
        products = _under_rows(x, geometry) @ _by_row(weight).T
        places = _rows(geometry) * geometry.kernel[0]
        return add_rows(products.reshape(-1, places, outputs), column_sources(geometry))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, weight), geometry = ctx.saved_tensors, ctx.geometry
        outputs, channels, kernel_h, kernel_w = weight.shape
        spread = take_rows(grad, column_table(geometry)).reshape(-1, kernel_h * outputs)
        # The forward pass made these rows: common subexpressions are merged later.
        by_row = (spread.T @ _under_rows(x, geometry)).reshape(kernel_h, outputs, -1)
        grad_weight = by_row.permute(1, 0, 2).reshape(outputs, -1, channels).permute(0, 2, 1)
        products = (spread @ _by_row(weight)).reshape(-1, _rows(geometry) * kernel_w, channels)
        grad_x = add_rows(products, row_sources(geometry))
        return grad_x.reshape(x.shape), grad_weight.reshape(weight.shape), None


def _rows(geometry: Geometry) -> int:
    """Rows under the kernel's rows, and the one of zeros behind them."""
    return geometry.size[0] * geometry.output[1] + 1


def _columns(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """x[b,h,w,c] -> [b * places_out, kernel * c]."""
    channels = x.shape[3]
    if channels < _CHANNELS_FEW and geometry.kernel[1] > 1:
        rows = _under_rows(x, geometry)
        rows = rows.reshape(-1, _rows(geometry), rows.shape[1])
        x = rows.index_select(1, stack_table(geometry))
    elif not _is_plain(geometry):
        x = take_rows(x.reshape(-1, geometry.places_in, channels), kernel_table(geometry))
    return x.reshape(-1, geometry.kernel[0] * geometry.kernel[1] * channels)


def _under_rows(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """x[b,h,w,c] -> [b * (h * w' + 1), kernel_w * c]; each example's last row is zero."""
    channels = x.shape[3]
    x = take_rows(x.reshape(-1, geometry.places_in, channels), row_table(geometry))
    return x.reshape(-1, geometry.kernel[1] * channels)


def _by_place(weight: torch.Tensor) -> torch.Tensor:
    """[o,c,kernel_h,kernel_w] -> [o, kernel_h * kernel_w * c]."""
    outputs, channels = weight.shape[:2]
    return weight.reshape(outputs, channels, -1).permute(0, 2, 1).reshape(outputs, -1)


def _by_row(weight: torch.Tensor) -> torch.Tensor:
    """[o,c,kernel_h,kernel_w] -> [kernel_h * o, kernel_w * c]."""
    outputs, channels, kernel_h, kernel_w = weight.shape
    # In two steps, each of which onnxruntime has a fast form for.
    rows = weight.reshape(outputs, channels, -1).permute(0, 2, 1)
    rows = rows.reshape(outputs, kernel_h, kernel_w * channels).permute(1, 0, 2)
    return rows.reshape(kernel_h * outputs, -1)


def _is_plain(geometry: Geometry) -> bool:
    """Whether the columns are the input itself."""
    return geometry.kernel == geometry.stride == geometry.window == (1, 1) and geometry.padding == (
        0,
        0,
    )


def _prefers_rows(geometry: Geometry, weight: torch.Tensor) -> bool:
    outputs, channels, kernel_h, kernel_w = weight.shape
    return geometry.stride[0] == 1 and kernel_h > 1 and outputs <= kernel_w * channels


def _geometry(node: fx.Node) -> Geometry | None:
    """Of a convolution that pays; else None."""
    x, weight, y = value(node.args[0]), value(node.args[1]), value(node)
    if x is None or weight is None or y is None or x.dim() != 4 or argument(node, 6, 1) != 1:
        return None
    sizes = (*x.shape[1:], *y.shape[1:], *weight.shape)
    if not all(isinstance(size, int) for size in sizes):
        return None
    outputs, channels, kernel_h, kernel_w = (int(size) for size in weight.shape)
    dilation, padding = pair(argument(node, 5, 1)), argument(node, 4, 0)
    if padding == "same":
        # What does not divide by two is padded behind; the size of the output tells how much.
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, (kernel_h, kernel_w), strict=True)]
    geometry = Geometry(
        size=(int(x.shape[2]), int(x.shape[3])),
        kernel=(kernel_h, kernel_w),
        stride=pair(argument(node, 3, 1)),
        padding=pair(0 if padding == "valid" else padding),
        dilation=dilation,
        output=(int(y.shape[2]), int(y.shape[3])),
    )
    if _prefers_rows(geometry, weight):
        wide = max(kernel_w * channels, kernel_h * outputs)
        floats = geometry.size[0] * geometry.output[1] * wide
    else:
        floats = geometry.places_out * kernel_h * kernel_w * channels
    return geometry if floats <= _FLOATS_MAX else None
