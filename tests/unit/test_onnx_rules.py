"""The rule of every accepted operator against what onnxruntime makes of it."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import pytest

from fedtide.errors import BundleError
from fedtide.onnx_calls import Call, Scratch
from fedtide.onnx_footprint import WORK_BYTES_MAX, footprint
from fedtide.onnx_graph import Budget, read_model
from fedtide.onnx_operations import ELEMENT, NODE_OPERATIONS
from fedtide.onnx_rules import RULES
from fedtide.onnx_scan import LIVE_BYTES_MAX, OPERATORS, scan_model
from tests.onnx_bytes import (
    attribute,
    block,
    chain,
    float_tensor,
    int64_array,
    int64_tensor,
    integer,
    integers,
    node,
    number,
    result,
    scalar,
    scan_node,
    string,
    value,
)


class Case(NamedTuple):
    """`inputs`: a shape of floats, or a list of int64 (a number: a scalar), or bytes."""

    op_type: str
    inputs: tuple[Any, ...]
    more: bytes = b""
    elem_types: tuple[int, ...] = (1,)


I64, BOOL = (7,), (9,)
IMAGE = (2, 4, 5, 6)
UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Dropout Elu Erf Exp EyeLike Floor
    HardSigmoid HardSwish Hardmax Identity LeakyRelu Log LogSoftmax LpNormalization Mish Neg
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh
    ThresholdedRelu Trilu""".split()  # noqa: SIM905 - a table
REDUCE = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare""".split()  # noqa: SIM905 - a table
FLAGS = number(1, 2) + number(2, 9) + block(8, "i0") + block(9, bytes(2))
WINDOW = integers("strides", 2, 3) + integers("pads", 1, 0, 0, 1)
SAME = string("auto_pad", "SAME_UPPER") + integers("strides", 2, 2)
SIZED = integers("strides", 2, 3) + integers("output_shape", 9, 16)
GROUPED = integer("group", 2)
AB_BC_CD = string("equation", "ab,bc,cd->ad")
POOL = integers("kernel_shape", 3, 2) + WINDOW
CASES = [
    *(Case(name, ((3, 4),)) for name in UNARY),
    *(Case(name, ((3, 1), (4,))) for name in ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow")),
    *(Case(name, ((3, 1, 2), (4, 1))) for name in ("Sub", "Sum", "PRelu")),
    *(Case(name, ((3, 1), (4,)), elem_types=BOOL) for name in ("Equal", "Greater", "Less")),
    *(Case(name, ((3,), (1,)), elem_types=BOOL) for name in ("GreaterOrEqual", "LessOrEqual")),
    *(Case(name, ((3, 2),), elem_types=BOOL) for name in ("IsInf", "IsNaN")),
    *(Case(name, ([5, 6], [3]), elem_types=I64) for name in ("Mod", "BitwiseAnd", "BitwiseOr")),
    Case("BitwiseXor", ([5, 6], [3]), elem_types=I64),
    Case("BitwiseNot", ([5, 6],), elem_types=I64),
    Case("BitShift", (number(1, 2) + number(2, 13) + block(8, "i0") + block(9, bytes(16)),) * 2,
         string("direction", "LEFT"), (13,)),
    *(Case(name, (FLAGS,) * 2,
           elem_types=BOOL) for name in ("And", "Or", "Xor")),
    Case("Not", (FLAGS,), b"", BOOL),
    Case("Where", (FLAGS, (3, 1), (2,))),
    Case("Cast", ((3,),), integer("to", 7), I64),
    Case("CastLike", ((3,), [1]), b"", I64),
    Case("Clip", ((3,), (), ())),
    Case("CumSum", ((3, 4), 1)),
    Case("Gelu", ((3, 4),)),
    Case("GroupNormalization", (IMAGE, (2,), (2,)), integer("num_groups", 2)),
    Case("InstanceNormalization", (IMAGE, (4,), (4,))),
    Case("LayerNormalization", ((3, 4, 5), (4, 5)), integer("axis", 1), (1, 1, 1)),
    Case("BatchNormalization", (IMAGE, (4,), (4,), (4,), (4,)), integer("training_mode", 1),
         (1, 1, 1)),
    Case("LRN", (IMAGE,), integer("size", 3)),
    Case("MeanVarianceNormalization", (IMAGE,)),
    Case("ReverseSequence", ((3, 2), [1, 3])),
    Case("ScatterElements", ((3,), [1], (1,))),
    Case("ScatterND", ((3, 2), int64_array("i1", [1, 1], 1), (1, 2))),
    Case("Shape", ((3, 4, 5),), integer("start", 1), I64),
    Case("Shape", ((3, 4, 5),), integer("start", -2) + integer("end", -1), I64),
    Case("Size", ((3, 4, 5),), b"", I64),
    Case("Constant", (), attribute(5, float_tensor("", 2, 3))),
    Case("Constant", (), integers("value_ints", 4, 5), I64),
    Case("ConstantOfShape", ([2, 3],)),
    Case("Range", (3, 20, 5), b"", I64),
    Case("Range", (20, 3, -5), b"", I64),
    Case("Expand", ((3, 1), [2, 1, 4])),
    Case("Tile", ((3, 2), [2, 3])),
    Case("Pad", ((3, 4), [1, 0, 2, -1])),
    Case("Pad", ((3, 4), [1, 2], (), [1])),
    Case("OneHot", ([1, 2], 5, (2,))),
    Case("OneHot", ([1, 2], 5, (2,)), integer("axis", 0)),
    Case("Resize", (IMAGE, (0,), (4,)), string("mode", "nearest")),
    Case("Resize", (IMAGE, (0,), (0,), [2, 4, 7, 3])),
    Case("Reshape", ((3, 4, 5), [0, -1])),
    Case("Reshape", ((3, 4, 5), [2, -1, 3, 2])),
    Case("Squeeze", ((3, 1, 1), [1])),
    Case("Squeeze", ((3, 1, 1),)),
    Case("Unsqueeze", ((3, 4), [0, -1])),
    Case("Flatten", ((3, 4, 5),), integer("axis", 2)),
    Case("Flatten", ((3, 4, 5),), integer("axis", -1)),
    Case("Transpose", ((3, 4, 5),)),
    Case("Transpose", ((3, 4, 5),), integers("perm", 0, 2, 1)),
    Case("Concat", ((3, 4), (3, 5)), integer("axis", -1)),
    Case("Split", ((5, 4),), integer("num_outputs", 3), (1, 1, 1)),
    Case("Split", ((4, 5), [2, 3]), integer("axis", 1), (1, 1)),
    Case("Slice", ((9, 4), [1], [-1], [0], [3])),
    Case("Slice", ((9, 4), [8], [-100], [0], [-2])),
    Case("Slice", ((9, 4), [-3, 1], [100, 3])),
    Case("Gather", ((9, 4), int64_array("i1", [2, 2], 1, 2, 3, 0)), integer("axis", 1)),
    Case("Gather", ((9, 4), 1)),
    Case("GatherElements", ((9, 4), int64_array("i1", [1, 2], 1, 2))),
    Case("GatherND", ((9, 4), int64_array("i1", [1, 1], 1))),
    Case("GatherND", ((2, 4, 3), int64_array("i1", [2, 1], 1, 0)), integer("batch_dims", 1)),
    Case("TopK", ((3, 4), [2]), b"", (1, 7)),
    *(Case(name, ((3, 4, 5), [1]), integer("keepdims", 0)) for name in REDUCE),
    Case("ReduceSum", ((3, 4, 5), [0, -1])),
    Case("ReduceSum", ((3, 4, 5),)),
    Case("ArgMax", ((3, 4),), integer("axis", 1), I64),
    Case("ArgMin", ((3, 4),), integer("keepdims", 0), I64),
    *(Case("MatMul", shapes) for shapes in (
        ((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)),
        ((5, 1, 2, 3), (4, 3, 6)), ((3,), (5, 3, 2)), ((5, 2, 3), (3,)),
    )),
    Case("Gemm", ((3, 2), (4, 3), (4,)), integer("transA", 1) + integer("transB", 1)),
    Case("Einsum", ((2, 3), (3, 4)), string("equation", "ij,jk->ik")),
    Case("Einsum", ((2,), (3,)), string("equation", "i,j->ji")),
    Case("SoftmaxCrossEntropyLoss", ((3, 4), [0, 1, 2]), b"", (1, 1)),
    Case("NegativeLogLikelihoodLoss", ((3, 4), [0, 1, 2]), string("reduction", "none")),
    Case("Conv", (IMAGE, (6, 2, 3, 2)), integer("group", 2) + WINDOW),
    Case("Conv", (IMAGE, (6, 4, 3, 2)), integers("dilations", 2, 1) + integers("strides", 1, 2)),
    Case("Conv", (IMAGE, (6, 4, 3, 3)), SAME),
    Case("Conv", ((2, 3, 7), (5, 3, 3)), integers("pads", 2, 1)),
    Case("ConvTranspose", (IMAGE, (4, 3, 3, 2)), integers("strides", 2, 3) + integer("group", 2)),
    Case("ConvTranspose", (IMAGE, (4, 3, 3, 2)), integers("strides", 2, 3) + integers(
        "output_padding", 1, 2) + integers("pads", 1, 0, 0, 1) + integers("dilations", 2, 1)),
    Case("ConvTranspose", (IMAGE, (4, 3, 3, 2)), SIZED),
    Case("MaxPool", (IMAGE,), POOL, (1, 7)),
    Case("MaxPool", (IMAGE,), integers("kernel_shape", 2, 2) + integers("strides", 2, 4) + integer(
        "ceil_mode", 1)),
    Case("AveragePool", (IMAGE,), POOL),
    Case("AveragePool", (IMAGE,), integers("kernel_shape", 3, 3) + string("auto_pad", "VALID")),
    Case("GlobalAveragePool", (IMAGE,)),
    Case("GlobalMaxPool", (IMAGE,)),
    Case("DepthToSpace", (IMAGE,), integer("blocksize", 2)),
    Case("SpaceToDepth", ((2, 4, 6, 4),), integer("blocksize", 2)),
    Case("LSTM", ((5, 2, 3), (1, 16, 3), (1, 16, 4)), integer("hidden_size", 4), (1, 1, 1)),
    Case("GRU", ((5, 2, 3), (1, 12, 3), (1, 12, 4)), integer("hidden_size", 4), (1, 1)),
    Case("RNN", ((5, 2, 3), (1, 4, 3), (1, 4, 4)), integer("hidden_size", 4), (1, 1)),
]  # fmt: skip


def constant(name: str, spec: Any) -> bytes:
    if isinstance(spec, bytes):
        return spec.replace(b"i0", name.encode()).replace(b"i1", name.encode())
    if isinstance(spec, int):
        return scalar(name, spec)
    if isinstance(spec, list):
        return int64_tensor(name, *spec)
    return float_tensor(name, *spec)


def single(case: Case) -> bytes:
    names = [f"i{index}" for index in range(len(case.inputs))]
    outputs = [f"o{index}" for index in range(len(case.elem_types))]
    content = b"".join(block(1, name) for name in names)
    content += b"".join(block(2, name) for name in outputs)
    operation = content + block(4, case.op_type) + case.more
    return chain(
        [operation],
        [constant(name, spec) for name, spec in zip(names, case.inputs, strict=True)],
        outputs=[result(*pair) for pair in zip(outputs, case.elem_types, strict=True)],
        opset=20,
    )


def session_of(raw: bytes) -> Any:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("no onnxruntime in this environment")
    from fedtide.runtime import import_onnxruntime, session_options

    return import_onnxruntime().InferenceSession(
        raw, session_options(1), providers=["CPUExecutionProvider"]
    )


def shapes_of(raw: bytes) -> list[tuple[int, ...]]:
    """What the rule says of the one node in `raw`."""
    from fedtide.onnx_calls import Value

    graph_ = read_model(raw, Budget(1000))
    (operation,) = graph_.nodes
    inputs = [Value(*graph_.constants[name], constant=True) for name in operation.inputs]
    shapes = RULES[operation.op_type](Call(operation, inputs))
    return [shape for shape in shapes if not isinstance(shape, Scratch)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op_type}-{case.inputs}"[:60])
def test_rules_give_the_shapes_that_onnxruntime_gives(case: Case) -> None:
    raw = single(case)
    results = session_of(raw).run(None, {})
    expected = [result_.shape for result_ in results]
    assert shapes_of(raw)[: len(expected)] == expected


def test_every_operator_is_tried() -> None:
    assert {case.op_type for case in CASES} == set(RULES)
    assert set(RULES) | {"Scan"} == OPERATORS


X = value("x", 1, (4,))


def scan_error(*nodes: bytes, constants: tuple[bytes, ...] = ()) -> str:
    with pytest.raises(BundleError) as caught:
        scan_model(chain(nodes, constants, [X]))
    return str(caught.value)


def test_results_that_exist_at_one_time_are_added_up() -> None:
    def peak(*nodes: bytes) -> int:
        return scan_model(chain(nodes, inputs=[X])).footprint.peak_bytes

    assert peak(node("Relu", output="y")) == 16
    assert peak(node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")) == 32
    assert peak(node("Relu", "x", "a"), node("Relu", "a", "b"), node("Add", "a b", "y")) == 48
    assert peak(node("Cast", "x", "a", more=integer("to", 11)), node("ReduceSum", "a", "y")) == 40


def test_memory_follows_the_batch() -> None:
    declared = block(1, "x") + block(2, block(1, number(1, 1) + block(2, block(1, block(2, "n")))))
    scan = scan_model(chain([node("Relu", output="y")], inputs=[declared]))
    assert [scan.peak_bytes(batch) for batch in (1, 10, 64)] == [4, 40, 256]


def body(*nodes: bytes, ins: tuple[str, ...] = ("s",), outs: tuple[str, ...] = ("t",)) -> bytes:
    content = b"".join(block(1, item) for item in nodes) + block(2, "body")
    content += b"".join(block(11, result(name)) for name in ins)
    return content + b"".join(block(12, result(name)) for name in outs)


def test_a_scan_gives_the_shapes_that_onnxruntime_gives() -> None:
    inner = body(
        node("Add", "h s", "h2"), node("Concat", "h2 s", "both", more=integer("axis", 0)),
        ins=("h", "s"), outs=("h2", "both"),
    )  # fmt: skip
    content = block(1, "h0") + block(1, "steps") + block(2, "last") + block(2, "all")
    content += block(4, "Scan") + attribute(6, inner, "body") + integer("num_scan_inputs", 1)
    content += integers("scan_input_axes", 1) + integers("scan_output_axes", -1)
    raw = chain(
        [content, node("Relu", "last", "y"), node("Relu", "all", "z")],
        [float_tensor("h0", 3), float_tensor("steps", 3, 5)],
        outputs=[result("y"), result("z")],
    )
    assert [array.shape for array in session_of(raw).run(None, {})] == [(3,), (6, 5)]
    found = scan_model(raw).footprint
    # last and all, then y and z: 3 and 30 floats; in each of 5 iterations 3 and 6.
    assert found.work_bytes == 4 * (2 * (3 + 30) + 5 * 9)
    assert found.peak_bytes == 4 * (30 + 30 + 3)


def test_iterations_are_work() -> None:
    inner = body(node("Expand", "s big", "t"))
    big = int64_tensor("big", 1 << 20)
    steps = float_tensor("steps", 50)
    scan_ = scan_node(inner, "steps", "all")
    raw = chain([scan_, node("ReduceMax", "all")], [big, steps])
    found = scan_model(raw).footprint
    assert found.work_bytes == 2 * 50 * (4 << 20) + 4
    # Each time a slice and a shape are read; then the maximum of all of it.
    elements = 50 * ((1 << 20) + 1 + 1) + (50 << 20) + 1
    # The body and its node start 50 times, and the maximum once.
    assert found.operations == 101 * NODE_OPERATIONS + ELEMENT * elements
    rows = [int64_tensor("many", 1 << 22), node("Expand", "x0 many", "rows")]
    deep = scan_node(body(scan_node(inner, "rows", "u"), node("ReduceMax", "u", "t")), "rows")
    text = scan_error(rows[1], deep, constants=(big, rows[0], float_tensor("x0", 1)))
    assert "bytes" in text
    assert WORK_BYTES_MAX > LIVE_BYTES_MAX


@pytest.mark.parametrize(
    ("products", "elements", "op_type", "shapes", "more"),
    [
        (0, 12 + 4 + 12, "Add", ((3, 4), (4,)), b""),
        (2 * 3 * 4 * 5, 12 + 20 + 15, "MatMul", ((3, 4), (4, 5)), b""),
        (7 * 2 * 3 * 4 * 5, 7 * (12 + 20 + 15), "MatMul", ((7, 3, 4), (7, 4, 5)), b""),
        (2 * 3 * 4 * 5, 12 + 20 + 15, "Gemm", ((4, 3), (5, 4)),
         integer("transA", 1) + integer("transB", 1)),
        # Its result is 3 x 2, and what is between the products 3 x 5.
        (2 * (3 * 4 * 5 + 3 * 5 * 2), 12 + 20 + 10 + 6 + 15, "Einsum", ((3, 4), (4, 5), (5, 2)),
         AB_BC_CD),
        (2 * (2 * 6 * 3 * 4) * (2 * 3 * 3), 240 + 108 + 2 * 6 * 3 * 4, "Conv",
         ((2, 4, 5, 6), (6, 2, 3, 3)), GROUPED),
        # Columns of 27 rows for each of the 30 places, then added up in images of 7 x 8.
        (2 * (2 * 4 * 5 * 6) * (3 * 3 * 3), 240 + 108 + 2 * 3 * 7 * 8 + 27 * 30, "ConvTranspose",
         ((2, 4, 5, 6), (4, 3, 3, 3)), b""),
        (0, 240 + 2 * (2 * 4 * 3 * 4) + 2 * 4 * 3 * 4 * 9, "MaxPool", ((2, 4, 5, 6),),
         integers("kernel_shape", 3, 3)),
        # Each of the 7 steps starts, and applies 12 functions to 2 examples.
        (7 * NODE_OPERATIONS + 2 * 7 * 2 * (12 * 5 + 12 * 12),
         7 * 2 * 5 + 60 + 144 + 7 * 2 * 12 + 2 * 2 * 12 + 7 * 2 * 12, "RNN",
         ((7, 2, 5), (1, 12, 5), (1, 12, 12)), b""),
        (0, 30 + 6, "ReduceSum", ((5, 6),), integers("axes", 0)),
        (0, 8, "Gather", ((1000, 4), [1, 2]), b""),
        (0, 10 * (1 + 3 + 2 * 2), "TopK", ((3,), [2]), b""),
    ],
)  # fmt: skip
def test_operations_are_counted(
    products: int, elements: int, op_type: str, shapes: tuple[Any, ...], more: bytes
) -> None:
    constants = [
        int64_tensor(f"i{at}", *shape)
        if isinstance(shape, list)
        else float_tensor(f"i{at}", *shape)
        for at, shape in enumerate(shapes)
    ]
    names = " ".join(f"i{at}" for at in range(len(shapes)))
    found = scan_model(chain([node(op_type, names, "y", more=more)], constants)).footprint
    assert found.operations == NODE_OPERATIONS + products + ELEMENT * elements


def test_a_state_keeps_its_shape() -> None:
    inner = body(
        node("Concat", "h h", "h2", more=integer("axis", 0)), node("Neg", "s", "t"),
        ins=("h", "s"), outs=("h2", "t"),
    )  # fmt: skip
    content = block(1, "x") + block(1, "x") + block(2, "y") + block(2, "all") + block(4, "Scan")
    content += attribute(6, inner, "body") + integer("num_scan_inputs", 1)
    assert "becomes" in scan_error(content)


def test_what_cannot_be_followed_is_refused() -> None:
    values = node("Cast", "x", "s", more=integer("to", 7))
    assert "followed" in scan_error(values, node("ConstantOfShape", "s"))
    assert "nothing before it" in scan_error(node("Relu", "later"), node("Relu", "x", "later"))
    assert "twice" in scan_error(node("Relu"), node("Neg"))
    assert "output" in scan_error(node("Relu", "x", "other"))
    assert "multiplied" in scan_error(node("MatMul", "x m"), constants=(float_tensor("m", 5, 2),))
    unranked = chain([node("Relu")], inputs=[result("x")])
    with pytest.raises(BundleError, match="not declared"):
        scan_model(unranked)


def test_shapes_computed_from_shapes_are_followed() -> None:
    nodes = [
        node("Shape", "x", "n"), node("Mul", "n k", "m"), node("Cast", "m", "f", more=integer(
            "to", 1)), node("Sqrt", "f", "r"), node("Cast", "r", "i", more=integer("to", 7)),
        node("Concat", "i k", "shape", more=integer("axis", 0)), node("Expand", "h shape"),
    ]  # fmt: skip
    raw = chain(nodes, [int64_tensor("k", 9), float_tensor("h", 1)], [X])
    found = footprint(read_model(raw, Budget(100)), 1, RULES, strict=True)
    assert found.peak_bytes == 6 * 9 * 4 + 16
