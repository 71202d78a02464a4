"""How many operations a node of an ONNX graph takes, from shapes alone: what bounds its time.

The unit is one of a large matrix product, of which a multiplication and an addition are two: about
0.01 ns of one core of a desktop computer. What else there is has weights, so that onnxruntime takes
at most 0.3 ns for one, with the shapes that suit it least. It is a bound, not an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedtide.onnx_calls import Call, Shape
from fedtide.onnx_rules import einsum_sizes

NODE_OPERATIONS = 10_000
"""To start a node takes about a microsecond, whatever it computes; a Scan starts many."""
ELEMENT = 30
"""Of each element that is read or written: up to 6 ns, in a reduction across rows."""
_SLOW = 300
"""Of each element of these: up to 50 ns."""
_SLOW_ONES = {"GatherND", "LRN", "Resize", "TopK"}
_LOOKS_UP = {"Gather", "GatherElements", "GatherND", "Reshape", "Shape", "Size", "Slice", "Split"}
"""Their results say how much they read; their inputs may be tables."""


def operations(call: Call, shapes: Sequence[Shape]) -> int:
    """Of one run of the node; `shapes` are its results'."""
    op_type = call.node.op_type
    weight = _SLOW if op_type in _SLOW_ONES else ELEMENT
    product = _PRODUCTS.get(op_type)
    return (
        NODE_OPERATIONS
        + weight * _elements(call, shapes)
        + (product(call, shapes) if product else 0)
    )


def _elements(call: Call, shapes: Sequence[Shape]) -> int:
    read = () if call.node.op_type in _LOOKS_UP else call.inputs
    inputs = sum(math.prod(value.shape) for value in read if value is not None)
    return inputs + sum(map(math.prod, shapes))


def _mat_mul(call: Call, shapes: Sequence[Shape]) -> int:
    return 2 * math.prod(shapes[0]) * call.shape()[-1]


def _gemm(call: Call, shapes: Sequence[Shape]) -> int:
    return 2 * math.prod(shapes[0]) * call.shape()[0 if call.integer("transA", 0) else 1]


def _conv(call: Call, shapes: Sequence[Shape]) -> int:
    # Each result is a sum over a window; each input of a transposed one goes into a window.
    places = call.shape() if call.node.op_type == "ConvTranspose" else shapes[0]
    return 2 * math.prod(places) * math.prod(call.shape(1)[1:])


def _pool(call: Call, shapes: Sequence[Shape]) -> int:
    return ELEMENT * math.prod(shapes[0]) * math.prod(call.integers("kernel_shape", ()))


def _recurrent(call: Call, _shapes: Sequence[Shape]) -> int:
    steps, batch, _ = call.shape()
    gates = math.prod(call.shape(2)[:2])
    products = 2 * (math.prod(call.shape(1)) + math.prod(call.shape(2)))
    return steps * (NODE_OPERATIONS + batch * (products + ELEMENT * gates))


def _einsum(call: Call, _shapes: Sequence[Shape]) -> int:
    first, *further = einsum_sizes(call)[0]
    return 2 * sum(further) or first


_PRODUCTS: dict[str, Callable[[Call, Sequence[Shape]], int]] = {
    "MatMul": _mat_mul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
}
"""What these take besides what their elements do."""
