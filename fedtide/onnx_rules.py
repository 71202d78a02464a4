"""Shapes of the results of every operator that a bundle may use: the rules of `onnx_footprint`.

A rule may give more than the true shape where that is simpler, never less. An operator without a
rule is not accepted: to add one, write its rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedtide.onnx_calls import Call, Rule, Scratch, Shape, constant_of, cut

RULES: dict[str, Rule] = {}
"""By operator of ai.onnx."""


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return add


def broadcast(*shapes: Shape) -> Shape:
    """The common shape of arrays in an elementwise operation."""
    result: list[int] = []
    for place in range(1, max(map(len, shapes)) + 1):
        extents = {shape[-place] for shape in shapes if place <= len(shape)} - {1}
        if len(extents) > 1:
            raise ValueError(f"shapes {', '.join(map(str, shapes))} do not fit together")
        result.append(extents.pop() if extents else 1)
    return tuple(reversed(result))


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is not one of {rank}")
    return axis % rank


def positive(numbers: Sequence[int]) -> Sequence[int]:
    """onnxruntime divides by these without a look: before 1.26 a 0 ends the process."""
    if any(number < 1 for number in numbers):
        raise ValueError(f"{list(numbers)} should be positive")
    return numbers


@rule("""
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh CumSum
    Dropout Elu Erf Exp EyeLike Floor Gelu HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization IsInf IsNaN LRN LeakyRelu Log LogSoftmax LpNormalization
    MeanVarianceNormalization Mish Neg Not Reciprocal Relu ReverseSequence Round ScatterElements
    ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh
    ThresholdedRelu
""")
def _as_first(call: Call) -> list[Shape]:
    return [call.shape(), call.shape()]


@rule("""
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
""")
def _elementwise(call: Call) -> list[Shape]:
    return [broadcast(*(call.shape(index) for index in range(len(call.inputs))))]


@rule("GroupNormalization")
def _group_normalization(call: Call) -> list[Shape]:
    positive([call.integer("num_groups", 0)])
    return [call.shape()]


@rule("Trilu")
def _trilu(call: Call) -> list[Shape]:
    if call.has(1) and abs(call.numbers(1)[0]) > 1 << 32:
        raise ValueError("its offset is out of range")  # onnxruntime 1.24 reads elsewhere
    return [call.shape()]


@rule("LayerNormalization")
def _layer_normalization(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = _axis(call.integer("axis", -1), len(shape))
    statistics = shape[:axis] + (1,) * (len(shape) - axis)
    return [shape, statistics, statistics]


@rule("BatchNormalization")
def _batch_normalization(call: Call) -> list[Shape]:
    return [call.shape(), call.shape(3), call.shape(4)]


@rule("SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss")
def _loss(call: Call) -> list[Shape]:
    whole = call.string("reduction", "mean") == "none"
    return [call.shape(1) if whole else (), call.shape()]


@rule("Shape")
def _shape(call: Call) -> list[Shape]:
    rank = len(call.shape())
    start, end = call.integer("start", 0), call.integer("end", rank)
    return [(len(range(rank)[start:end]),)]


@rule("Size")
def _size(_call: Call) -> list[Shape]:
    return [()]


@rule("Constant")
def _constant(call: Call) -> list[Shape]:
    return [constant_of(call).shape]


@rule("ConstantOfShape")
def _constant_of_shape(call: Call) -> list[Shape]:
    return [call.numbers(0)]


@rule("Range")
def _range(call: Call) -> list[Shape]:
    start, limit, delta = (call.numbers(index)[0] for index in range(3))
    if max(abs(start), abs(limit), abs(delta)) > 1 << 53:
        raise ValueError("its numbers are out of range")  # where onnxruntime overflows
    return [(max(0, math.ceil((limit - start) / delta)),)]


@rule("Expand")
def _expand(call: Call) -> list[Shape]:
    return [broadcast(call.shape(), call.numbers(1))]


@rule("Tile")
def _tile(call: Call) -> list[Shape]:
    pairs = zip(call.shape(), call.numbers(1), strict=True)
    return [tuple(extent * times for extent, times in pairs)]


@rule("Pad")
def _pad(call: Call) -> list[Shape]:
    shape, pads = list(call.shape()), call.numbers(1)
    axes = call.numbers(3) if call.has(3) else range(len(shape))
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        shape[_axis(axis, len(shape))] += before + after
    return [tuple(shape)]


@rule("OneHot")
def _one_hot(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = _axis(call.integer("axis", -1), len(shape) + 1)
    return [(*shape[:axis], int(call.numbers(1)[0]), *shape[axis:])]


@rule("Resize")
def _resize(call: Call) -> list[Shape]:
    if call.string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise ValueError("tf_crop_and_resize is not accepted")
    if call.string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("keep_aspect_ratio_policy is not accepted")
    shape = list(call.shape())
    axes = call.integers("axes", range(len(shape)))
    scaled = not call.has(3)
    for axis, number in zip(axes, call.numbers(2 if scaled else 3), strict=True):
        place = _axis(axis, len(shape))
        shape[place] = math.floor(shape[place] * number) if scaled else number
    return [tuple(shape)]


@rule("Reshape")
def _reshape(call: Call) -> list[Shape]:
    shape, target = call.shape(), list(call.numbers(1))
    if not call.integer("allowzero", 0):
        target = [shape[at] if extent == 0 else extent for at, extent in enumerate(target)]
    if -1 in target:
        rest = -math.prod(target)
        target[target.index(-1)] = math.prod(shape) // rest if rest else 0
    if math.prod(target) != math.prod(shape):
        raise ValueError(f"{shape} cannot become {tuple(target)}")
    return [tuple(target)]


@rule("Squeeze Unsqueeze")
def _squeeze(call: Call) -> list[Shape]:
    shape = list(call.shape())
    given = call.numbers(1) if call.has(1) else call.integers("axes", ())
    if call.node.op_type == "Unsqueeze":
        rank = len(shape) + len(given)
        for axis in sorted(_axis(axis, rank) for axis in given):
            shape.insert(axis, 1)
        return [tuple(shape)]
    axes = {_axis(axis, len(shape)) for axis in given}
    axes = axes or {at for at, extent in enumerate(shape) if extent == 1}
    if any(shape[axis] != 1 for axis in axes):
        raise ValueError(f"{tuple(shape)} cannot lose axes {sorted(axes)}")
    return [tuple(extent for at, extent in enumerate(shape) if at not in axes)]


@rule("Flatten")
def _flatten(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = call.integer("axis", 1)
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


@rule("Transpose")
def _transpose(call: Call) -> list[Shape]:
    shape = call.shape()
    order = call.integers("perm", range(len(shape))[::-1])
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"{order} is no order of {len(shape)} axes")
    return [tuple(shape[axis] for axis in order)]


@rule("Concat")
def _concat(call: Call) -> list[Shape]:
    shapes = [list(call.shape(index)) for index in range(len(call.inputs))]
    axis = _axis(call.integer("axis", 0), len(shapes[0]))
    total = sum(shape.pop(axis) for shape in shapes)
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("its inputs do not fit together")
    return [(*shapes[0][:axis], total, *shapes[0][axis:])]


@rule("Split")
def _split(call: Call) -> list[Shape]:
    shape, count = call.shape(), len(call.node.outputs)
    axis = _axis(call.integer("axis", 0), len(shape))
    part = -(-shape[axis] // count)
    sizes = [max(0, min(part, shape[axis] - at * part)) for at in range(count)]
    sizes = list(call.numbers(1)) if call.has(1) else sizes
    if sum(sizes) != shape[axis]:
        raise ValueError(f"{sizes} are not the parts of {shape[axis]}")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


@rule("Slice")
def _slice(call: Call) -> list[Shape]:
    shape = list(call.shape())
    if any(call.value(index).array is None for index in range(1, len(call.inputs))):
        return [tuple(shape)]  # a slice is never larger
    starts, ends = call.numbers(1), call.numbers(2)
    axes = call.numbers(3) if call.has(3) else range(len(starts))
    steps = call.numbers(4) if call.has(4) else (1,) * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = _axis(axis, len(shape))
        extent = shape[place]
        shape[place] = len(range(*cut(extent, start, end, step).indices(extent)))
    return [tuple(shape)]


@rule("Gather")
def _gather(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = _axis(call.integer("axis", 0), len(shape))
    return [(*shape[:axis], *call.shape(1), *shape[axis + 1 :])]


@rule("GatherElements")
def _gather_elements(call: Call) -> list[Shape]:
    return [call.shape(1)]


@rule("GatherND")
def _gather_nd(call: Call) -> list[Shape]:
    shape, indices = call.shape(), call.shape(1)
    batch = call.integer("batch_dims", 0)
    depth = batch + indices[-1]
    if not 0 <= batch < depth <= len(shape) or shape[:batch] != indices[:-1][:batch]:
        raise ValueError("its indices do not fit")
    return [(*indices[:-1], *shape[depth:])]


@rule("TopK")
def _top_k(call: Call) -> list[Shape]:
    shape = list(call.shape())
    axis = _axis(call.integer("axis", -1), len(shape))
    if call.value(1).array is not None:
        shape[axis] = min(shape[axis], call.numbers(1)[0])
    return [tuple(shape), tuple(shape)]


@rule("""
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare ArgMax ArgMin
""")
def _reduce(call: Call) -> list[Shape]:
    shape = call.shape()
    if call.node.op_type.startswith("Arg"):
        given: tuple[int, ...] = (call.integer("axis", 0),)
    else:
        given = call.numbers(1) if call.has(1) else call.integers("axes", ())
    if not given and call.integer("noop_with_empty_axes", 0):
        return [shape]
    axes = {_axis(axis, len(shape)) for axis in given} or set(range(len(shape)))
    if call.integer("keepdims", 1):
        return [tuple(1 if at in axes else extent for at, extent in enumerate(shape))]
    return [tuple(extent for at, extent in enumerate(shape) if at not in axes)]


@rule("MatMul")
def _mat_mul(call: Call) -> list[Shape]:
    left, right = call.shape(), call.shape(1)
    left_2d = left if len(left) > 1 else (1, *left)
    right_2d = right if len(right) > 1 else (*right, 1)
    if left_2d[-1] != right_2d[-2]:
        raise ValueError(f"{left} and {right} cannot be multiplied")
    rows = left_2d[-2:-1] if len(left) > 1 else ()
    columns = right_2d[-1:] if len(right) > 1 else ()
    return [(*broadcast(left_2d[:-2] or (1,), right_2d[:-2] or (1,)), *rows, *columns)
            if len(left) > 2 or len(right) > 2 else (*rows, *columns)]  # fmt: skip


@rule("Gemm")
def _gemm(call: Call) -> list[Shape]:
    left, right = call.shape(), call.shape(1)
    if call.integer("transA", 0):
        left = left[::-1]
    if call.integer("transB", 0):
        right = right[::-1]
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise ValueError(f"{left} and {right} cannot be multiplied")
    return [(left[0], right[1])]


@rule("Einsum")
def _einsum(call: Call) -> list[Shape]:
    _, largest, shape = einsum_sizes(call)
    return [shape, Scratch((largest,))]


def einsum_sizes(call: Call) -> tuple[list[int], int, Shape]:
    """Products of each of its steps, the size of its largest intermediate, and its result's shape.

    Operands are multiplied one after the other; what is not needed later is summed at once.
    """
    terms, arrow, output = call.string("equation", "").replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or "." in terms or len(operands) != len(call.inputs):
        raise ValueError(f"equation {terms!r} is not accepted")
    extents: dict[str, int] = {}
    for index, letters in enumerate(operands):
        for letter, extent in zip(letters, call.shape(index), strict=True):
            extents[letter] = max(extent, extents.get(letter, 1))

    def size(letters: set[str]) -> int:
        return math.prod(extents[letter] for letter in letters)

    kept, products, largest = set(operands[0]), list[int](), 0
    for index, letters in enumerate(operands):
        products.append(size(kept | set(letters)))
        kept = (kept | set(letters)) & set("".join([output, *operands[index + 1 :]]))
        largest = max(largest, size(kept))
    return products, largest, tuple(extents[letter] for letter in output)
