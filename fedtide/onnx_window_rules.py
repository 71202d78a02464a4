"""More rules of `onnx_rules`: convolutions, pooling, space and depth, recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedtide.onnx_calls import Call, Scratch, Shape
from fedtide.onnx_rules import positive, rule


def _windows(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Shape:
    """Number of places of a window along each axis."""
    rank = len(sizes)
    ones = (1,) * rank
    strides = positive(call.integers("strides", ones))
    dilations = positive(call.integers("dilations", ones))
    pads = call.integers("pads", (0,) * 2 * rank)
    automatic = call.string("auto_pad", "NOTSET")
    counts: list[int] = []
    for size, width, stride, dilation, before, after in zip(
        sizes, positive(kernel), strides, dilations, pads[:rank], pads[rank:], strict=True
    ):
        span = dilation * (width - 1) + 1
        if automatic.startswith("SAME"):
            counts.append(-(-size // stride))
            continue
        room = size + (0 if automatic == "VALID" else before + after) - span
        if call.integer("ceil_mode", 0):
            room += stride - 1
        if room < 0:
            raise ValueError(f"a window of {span} does not fit into {size}")
        counts.append(room // stride + 1)
    return tuple(counts)


@rule("Conv")
def _conv(call: Call) -> list[Shape]:
    shape, weight = call.shape(), call.shape(1)
    (group,) = positive([call.integer("group", 1)])
    if not 3 <= len(shape) <= 5 or shape[1] != weight[1] * group or weight[0] % group:
        raise ValueError(f"{shape} and a kernel of {weight} do not fit together")
    return [(shape[0], weight[0], *_windows(call, shape[2:], weight[2:]))]


@rule("ConvTranspose")
def _conv_transpose(call: Call) -> list[Shape]:
    shape, weight = call.shape(), call.shape(1)
    rank = len(shape) - 2
    (group,) = positive([call.integer("group", 1)])
    if not 1 <= rank <= 3 or shape[1] != weight[0] or shape[1] % group:
        raise ValueError(f"{shape} and a kernel of {weight} do not fit together")
    strides = positive(call.integers("strides", (1,) * rank))
    dilations = positive(call.integers("dilations", (1,) * rank))
    pads = call.integers("pads", (0,) * 2 * rank)
    extra = call.integers("output_padding", (0,) * rank)
    if call.string("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("auto_pad is not accepted")
    sizes = tuple(
        stride * (size - 1) + more + dilation * (width - 1) + 1 - before - after
        for size, width, stride, dilation, before, after, more in zip(
            *(shape[2:], positive(weight[2:]), strides, dilations, pads[:rank], pads[rank:], extra),
            strict=True,
        )
    )
    sizes = call.integers("output_shape", sizes)[-rank:]
    columns = math.prod(weight[1:]) * math.prod(shape[2:])
    return [(shape[0], weight[1] * group, *sizes), Scratch((columns,))]


@rule("MaxPool AveragePool")
def _pool(call: Call) -> list[Shape]:
    shape = call.shape()
    result = (*shape[:2], *_windows(call, shape[2:], call.integers("kernel_shape", ())))
    return [result, result]


@rule("GlobalAveragePool GlobalMaxPool")
def _global_pool(call: Call) -> list[Shape]:
    shape = call.shape()
    return [shape[:2] + (1,) * (len(shape) - 2)]


@rule("DepthToSpace SpaceToDepth")
def _space_and_depth(call: Call) -> list[Shape]:
    batch, channels, height, width = call.shape()
    (size,) = positive([call.integer("blocksize", 0)])
    if call.node.op_type == "DepthToSpace":
        return [(batch, channels // size**2, height * size, width * size)]
    return [(batch, channels * size**2, height // size, width // size)]


@rule("GRU LSTM RNN")
def _recurrent(call: Call) -> list[Shape]:
    if call.integer("layout", 0):
        raise ValueError("layout is not accepted")
    steps, batch, size = call.shape()
    directions, gates, hidden = call.shape(2)
    per_cell = {"GRU": 3, "LSTM": 4, "RNN": 1}[call.node.op_type]
    fitting = call.shape(1) == (directions, gates, size) and gates == per_cell * hidden
    if not fitting or call.integer("hidden_size", hidden) != hidden:
        raise ValueError(f"weights of {call.shape(1)} and {call.shape(2)} do not fit")
    last = (directions, batch, hidden)
    return [(steps, directions, batch, hidden), last, last]
