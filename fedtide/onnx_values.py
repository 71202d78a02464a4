"""What is known of a node's results before it runs: types, and contents of small ones.

A shape may be computed from others and from constants, so such numbers are followed, in numpy, as
onnxruntime would compute them. Where the two might differ, the content counts as unknown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedtide.onnx_calls import Call, Shape, Value, constant_of, cut
from fedtide.onnx_graph import SMALL_ELEMENTS, Tensor

_BOOL, _INT64 = 9, 7
_INTEGERS = {2, 3, 4, 5, 6, 7, 12, 13}
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


_NOT_EMPTY = {
    *("BatchNormalization", "CumSum", "GatherND", "GroupNormalization", "Hardmax"),
    *("InstanceNormalization", "LRN", "LayerNormalization", "LogSoftmax", "LpNormalization"),
    *("MeanVarianceNormalization", "NegativeLogLikelihoodLoss", "OneHot", "ReverseSequence"),
    *("ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Resize"),
    *("Softmax", "SoftmaxCrossEntropyLoss", "TopK", "Trilu", "DepthToSpace", "SpaceToDepth"),
    *("AveragePool", "GRU", "GlobalAveragePool", "GlobalMaxPool", "LSTM", "MaxPool"),
    *("RNN", "Conv", "ConvTranspose", "Einsum"),
}
"""Some of these end the process in onnxruntime 1.20 if what they work on has no elements."""
_NOWHERE_EMPTY = {"Conv", "ConvTranspose", "Einsum", "GRU", "LSTM", "RNN"}


def check_empty(call: Call) -> None:
    """Arithmetic over axes needs elements; moving and elementwise operators do not."""
    if call.node.op_type not in _NOT_EMPTY:
        return
    every = call.node.op_type in _NOWHERE_EMPTY
    for value in call.inputs if every else call.inputs[:1]:
        if value is not None and 0 in value.shape:
            raise ValueError(f"an input of shape {value.shape} has no elements")


def check_divisor(call: Call) -> None:
    """An integer division by 0 or -1 ends the process in some versions of onnxruntime."""
    if call.node.op_type not in ("Div", "Mod") or call.value(0).elem_type not in _INTEGERS:
        return
    divisor = call.value(1)
    if not divisor.constant or not all(item not in (0, -1) for item in call.numbers(1)):
        raise ValueError("an integer may be divided by constants other than 0 and -1 only")


def results(call: Call, shapes: Sequence[Shape]) -> list[Value]:
    """The results of the given shapes, with their types, and their contents where known."""
    if len(shapes) < len(call.node.outputs):
        raise ValueError(f"it has {len(call.node.outputs)} outputs")
    content = _evaluate(call, shapes)
    constant = all(value is None or value.constant for value in call.inputs)
    constant = constant and call.node.op_type not in ("Shape", "Size")
    values: list[Value] = []
    for index, (_, shape) in enumerate(zip(call.node.outputs, shapes, strict=False)):
        if any(extent < 0 for extent in shape):
            raise ValueError(f"its result would have the shape {shape}")
        array = None if content is None else content[index]
        if array is not None and (array.shape != shape or array.size > SMALL_ELEMENTS):
            array = None
        values.append(Value(_elem_type(call, index), shape, array, constant))
    return values


_BOOLEAN = {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual"}
_BOOLEAN |= {"Not", "Or", "Xor"}
_INDICES = {("ArgMax", 0), ("ArgMin", 0), ("Shape", 0), ("Size", 0), ("TopK", 1), ("MaxPool", 1)}


def _elem_type(call: Call, index: int) -> int:
    op_type = call.node.op_type
    if op_type in _BOOLEAN or (op_type, index) == ("Dropout", 1):
        return _BOOL
    if (op_type, index) in _INDICES:
        return _INT64
    if op_type == "Cast":
        return call.integer("to", 0)
    if op_type == "Constant":
        return constant_of(call).elem_type
    if op_type == "ConstantOfShape":
        value = call.node.attributes.get("value")
        return value.elem_type if isinstance(value, Tensor) else 1
    if op_type == "EyeLike":
        return call.integer("dtype", call.value(0).elem_type)
    source = {"Where": 1, "CastLike": 1, "OneHot": 2}.get(op_type, 0)
    return call.value(source).elem_type


def _evaluate(call: Call, shapes: Sequence[Shape]) -> list[Any] | None:
    """The contents of small results that follow from shapes and from contents of inputs."""
    op_type = call.node.op_type
    if op_type == "Shape":
        rank = len(call.shape())
        start, end = call.integer("start", 0), call.integer("end", rank)
        return [np.array(call.shape()[slice(start, end)], np.int64)]
    if op_type == "Size":
        return [np.array(math.prod(call.shape()), np.int64)]
    if op_type == "Constant":
        return [constant_of(call).array]
    known = [value.array for value in call.inputs if value is not None]
    if any(array is None for array in known) or math.prod(shapes[0]) > SMALL_ELEMENTS:
        return None
    if op_type in _ELEMENTWISE:
        # Overflow is no number to go on with, and differs from processor to processor.
        safe = all(array.dtype.kind != "i" or np.all(abs(array) < 1 << 31) for array in known)
        return [_ELEMENTWISE[op_type](*known)] if safe or op_type in _EXACT else None
    evaluate = _MOVES.get(op_type)
    array = evaluate(call, shapes[0], known) if evaluate else None
    return None if array is None else [np.asarray(array)]


def _divide(left: Any, right: Any) -> Any:
    if left.dtype.kind != "i":
        return left / right
    return abs(left) // abs(right) * np.sign(left) * np.sign(right)


def _cast(call: Call, _shape: Shape, known: list[Any]) -> Any:
    dtype = _DTYPES.get(call.integer("to", 0))
    if dtype is None or not np.all(abs(known[0].astype(np.float64)) < 1 << 53):
        return None
    return known[0].astype(dtype)


def _fill(call: Call, shape: Shape, _known: list[Any]) -> Any:
    value = call.node.attributes.get("value")
    fill = value.array if isinstance(value, Tensor) else np.zeros(1, np.float32)
    return None if fill is None else np.full(shape, fill.item(), fill.dtype)


def _reshape(_call: Call, shape: Shape, known: list[Any]) -> Any:
    return known[0].reshape(shape)


def _reduce(call: Call, shape: Shape, known: list[Any]) -> Any:
    if len(known) > 1 or "axes" in call.node.attributes:
        return None
    exact = known[0].astype(object)  # an overflow is an error
    return np.array(_REDUCTIONS[call.node.op_type](exact)).astype(known[0].dtype).reshape(shape)


def _slice(
    array: Any, starts: Any, ends: Any, axes: Any | None = None, steps: Any | None = None
) -> Any:
    cuts = [slice(None)] * array.ndim
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = cut(array.shape[axis], start, end, step)
    return array[tuple(cuts)]


def _fold(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *known: functools.reduce(function, known)


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs, "Add": np.add, "And": np.logical_and, "Ceil": np.ceil, "Div": _divide,
    "Equal": np.equal, "Floor": np.floor, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "Identity": np.array, "Less": np.less,
    "LessOrEqual": np.less_equal, "Max": _fold(np.maximum), "Min": _fold(np.minimum), "Mod": np.mod,
    "Mul": np.multiply, "Neg": np.negative, "Not": np.logical_not, "Or": np.logical_or,
    "Round": np.rint, "Sqrt": np.sqrt, "Sub": np.subtract, "Where": np.where,
}  # fmt: skip
_EXACT = {"Equal", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Where"}
_EXACT |= {"Max", "Min"}
_REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    "ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod, "ReduceSum": np.sum,
}  # fmt: skip
_MOVES: dict[str, Callable[[Call, Shape, list[Any]], Any]] = {
    "Cast": _cast,
    "Concat": lambda call, _shape, known: np.concatenate(known, call.integer("axis", 0)),
    "ConstantOfShape": _fill,
    "Expand": lambda _call, shape, known: np.broadcast_to(known[0], shape),
    "Flatten": _reshape,
    "Gather": lambda call, _shape, known: np.take(known[0], known[1], call.integer("axis", 0)),
    "Range": lambda _call, _shape, known: np.arange(*(item.item() for item in known)),
    "Reshape": _reshape,
    "Slice": lambda _call, _shape, known: _slice(known[0], *(item.tolist() for item in known[1:])),
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
