"""Looks into an ONNX file before onnxruntime does, and refuses what a device must not run.

Refused: tensors whose data lie outside the file (anywhere: initializers, sparse ones,
attributes, subgraphs, functions), operators that are not on a list, and models over limits. What
cannot be seen statically (an operator whose output grows with the values of its inputs) is left
to the process's memory limit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedtide import limits
from fedtide.errors import BundleError
from fedtide.protobuf_wire import VARINT, Field, fields, int64s, nested, text

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Col2Im Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace Det Div Dropout Einsum
    Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max
    MaxPool MaxUnpool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NegativeLogLikelihoodLoss
    Not OneHot Or PRelu Pad Pow RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid
    Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split
    Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905 - a table
)
"""Operators of ai.onnx that a graph may use: arithmetic without files, randomness (Dropout is the
identity in evaluation graphs), or control flow but Scan. A Scan runs its body once for every slice
of its inputs, so tensors that exist already bound the number of its iterations; Loop and If, which
may go on for as long as a value says, are not on the list."""

ORT_TRAINING_OPERATORS: Mapping[str, frozenset[str]] = {
    "com.microsoft": frozenset(
        """
        AdamWOptimizer BatchNormInternal BatchNormalizationGrad BiasGelu BroadcastGradientArgs
        ConcatTraining ConvGrad DivGrad DropoutGrad FastGelu FusedMatMul GatherElementsGrad
        GatherGrad GatherNDGrad Gelu GeluGrad InPlaceAccumulatorV2 LayerNormalizationGrad
        LeakyReluGrad LogSoftmaxGrad_13 MaxPoolGrad PadAndUnflatten PassThrough
        ReduceSumTraining ReluGrad SGDOptimizerV2 Scale SigmoidGrad SliceGrad
        SoftmaxCrossEntropyLossGrad SoftmaxCrossEntropyLossInternal
        SoftmaxCrossEntropyLossInternalGrad SoftmaxGrad_13 SplitTraining TanhGrad YieldOp
        """.split()  # noqa: SIM905 - a table
    ),
    "": frozenset({"MaxPoolGrad", "AveragePoolGrad"}),  # onnxruntime's own, yet in ai.onnx
}
"""Operators that artifacts of `onnxruntime.training` use besides those of ai.onnx."""

NODES_MAX = 100_000
RESULT_ELEMENTS_MAX = 1 << 26
"""Most elements of a result whose shape is a constant of the graph: 256 MiB of float32."""
_DEPTH_MAX = 16
_RANK_MAX = 64
_SHAPE_ELEMENTS_MAX = 64
_INT64 = 7
_ORT_FORMAT = b"ORTM"
"""Where onnxruntime finds this at byte 4 it reads a flatbuffer, whatever else the bytes are."""

_NO_DOMAINS: Mapping[str, frozenset[str]] = {}


@dataclass(frozen=True)
class Scan:
    """What a model that passed holds."""

    nodes: int
    initializer_elements: int
    operators: Mapping[tuple[str, str], int]
    """How often each is used: (domain, op type); the domain of ai.onnx is the empty string."""


@dataclass
class _Tensor:
    elements: int
    integers: tuple[int, ...] | None
    """Its values, if it could be a shape: few int64."""


@dataclass
class _Walk:
    allowed: dict[str, frozenset[str]]
    elements_max: int
    nodes: int = 0
    elements: int = 0
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)


def scan_model(
    raw: bytes,
    *,
    extra_domains: Mapping[str, frozenset[str]] = _NO_DOMAINS,
    bytes_max: int = limits.GRAPH_BYTES_MAX,
    elements_max: int = limits.ELEMENTS_MAX,
) -> Scan:
    """Check the bytes of an ONNX file; see the module.

    `extra_domains` lists the operators allowed besides `OPERATORS`, by domain.

    Raises:
        BundleError: the model is damaged or not acceptable; the message says what and where.
    """
    if len(raw) > bytes_max:
        raise BundleError(
            f"the ONNX model has {len(raw):,} bytes, at most {bytes_max:,} are loaded"
        )
    if raw[4:8] == _ORT_FORMAT:
        raise BundleError("the model is in onnxruntime's own format, which is not accepted")
    allowed = {**extra_domains, "": OPERATORS | extra_domains.get("", frozenset())}
    walk = _Walk(allowed, elements_max)
    graphs = 0
    for item in fields(memoryview(raw), "model", frozenset({1, 7})):
        if item.tag == 7:
            graphs += 1
            _scan_graph(walk, nested(item, "model"), "graph", 0)
        elif item.tag == 25:
            _scan_function(walk, nested(item, "model"), "function")
        elif item.tag == 20:
            raise BundleError("model: training_info is not accepted")
    if not graphs:
        raise BundleError(f"these {len(raw):,} bytes hold no ONNX graph")
    return Scan(walk.nodes, walk.elements, walk.operators)


def _scan_graph(walk: _Walk, message: memoryview, where: str, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise BundleError(f"{where}: graphs are nested more than {_DEPTH_MAX} deep")
    shapes: dict[str, tuple[int, ...]] = {}
    nodes: list[memoryview] = []
    for item in fields(message, where, frozenset()):
        if item.tag == 1:
            nodes.append(nested(item, where))
        elif item.tag == 5:
            name, tensor = _scan_tensor(walk, nested(item, where), f"{where}: initializer")
            if tensor.integers is not None:
                shapes[name] = tensor.integers
        elif item.tag == 15:
            _scan_sparse(walk, nested(item, where), f"{where}: sparse initializer")
    # Initializers may follow the nodes in the file, so nodes are read when all shapes are known.
    for node in nodes:
        _scan_node(walk, node, where, shapes, depth)


def _scan_function(walk: _Walk, message: memoryview, where: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for item in fields(message, where, frozenset()):
        if item.tag == 7:
            _scan_node(walk, nested(item, where), where, shapes, 0)
        elif item.tag == 11:
            _scan_attribute(walk, nested(item, where), f"{where}: default attribute", 0)


def _scan_node(
    walk: _Walk, message: memoryview, where: str, shapes: dict[str, tuple[int, ...]], depth: int
) -> None:
    walk.nodes += 1
    if walk.nodes > NODES_MAX:
        raise BundleError(f"{where}: more than {NODES_MAX:,} nodes")
    op_type = domain = name = ""
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: list[memoryview] = []
    for item in fields(message, where, frozenset({3, 4, 7})):
        if item.tag == 1:
            inputs.append(text(item, where))
        elif item.tag == 2:
            outputs.append(text(item, where))
        elif item.tag == 3:
            name = text(item, where)
        elif item.tag == 4:
            op_type = text(item, where)
        elif item.tag == 5:
            attributes.append(nested(item, where))
        elif item.tag == 7:
            domain = text(item, where)
    domain = "" if domain == "ai.onnx" else domain
    spot = f"{where}: node {name or walk.nodes!r} ({op_type})"
    _check_operator(walk, domain, op_type, spot)
    for attribute in attributes:
        constant = _scan_attribute(walk, attribute, spot, depth)
        if op_type == "Constant" and constant is not None and outputs:
            shapes[outputs[0]] = constant
    _check_result(op_type, inputs, shapes, spot)


def _check_operator(walk: _Walk, domain: str, op_type: str, spot: str) -> None:
    if domain not in walk.allowed:
        raise BundleError(f"{spot}: operators of domain {domain!r} are not accepted")
    if op_type not in walk.allowed[domain]:
        raise BundleError(f"{spot}: operator {op_type!r} is not on the list of accepted ones")
    walk.operators[domain, op_type] += 1


_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Pad": 1, "Range": 1, "OneHot": 1}


def _check_result(
    op_type: str, inputs: list[str], shapes: dict[str, tuple[int, ...]], spot: str
) -> None:
    """Refuse an operator that a constant tells to make a huge result."""
    index = _SHAPE_INPUT.get(op_type)
    if index is None or index >= len(inputs):
        return
    shape = shapes.get(inputs[index])
    if shape is None:
        return
    wanted = math.prod(max(1, abs(extent)) for extent in shape)
    if op_type == "Pad":
        wanted = max((abs(extent) for extent in shape), default=0)
    if wanted > RESULT_ELEMENTS_MAX:
        raise BundleError(
            f"{spot}: asks for {wanted:,} elements, at most {RESULT_ELEMENTS_MAX:,} are accepted"
        )


def _scan_attribute(
    walk: _Walk, message: memoryview, where: str, depth: int
) -> tuple[int, ...] | None:
    """Check one attribute; the integers that it holds as a constant, if few."""
    found: tuple[int, ...] | None = None
    for item in fields(message, where, frozenset({1, 3, 5, 6, 20, 22})):
        if item.tag in (5, 10):
            found = _scan_tensor(walk, nested(item, where), f"{where}: attribute")[1].integers
        elif item.tag in (6, 11):
            _scan_graph(walk, nested(item, where), f"{where}: subgraph", depth + 1)
        elif item.tag in (22, 23):
            _scan_sparse(walk, nested(item, where), f"{where}: sparse attribute")
        elif item.tag == 3 and item.wire_type == VARINT:
            found = tuple(int64s(item, where, 1))
        elif item.tag == 8 and len(item.view) <= 10 * _SHAPE_ELEMENTS_MAX:
            found = (found or ()) + tuple(int64s(item, where, 10 * _SHAPE_ELEMENTS_MAX))
    return found


def _scan_sparse(walk: _Walk, message: memoryview, where: str) -> None:
    extents: list[int] = []
    for item in fields(message, where, frozenset({1, 2})):
        if item.tag in (1, 2):
            _scan_tensor(walk, nested(item, where), where)
        elif item.tag == 3:
            extents += int64s(item, where, _RANK_MAX)
    _count(walk, extents, where)  # onnxruntime makes a dense tensor of it


def _scan_tensor(walk: _Walk, message: memoryview, where: str) -> tuple[str, _Tensor]:
    name, extents, data_type = "", list[int](), 0
    integers: list[int] = []
    raw: memoryview | None = None
    for item in fields(message, where, frozenset({2, 8, 9, 14})):
        if item.tag == 8:
            name = text(item, where)
        elif item.tag == 13 or (item.tag == 14 and item.number != 0):
            raise BundleError(
                f"{where} {_tensor_name(message, where)!r}: its data lie outside the file",
                hint="a bundle's graphs must hold all their data; export the model again",
            )
        elif item.tag == 1:
            extents += int64s(item, where, _RANK_MAX)
        elif item.tag == 2:
            data_type = item.number
        elif item.tag == 7 and len(integers) <= _SHAPE_ELEMENTS_MAX:
            integers += _few_int64s(item, where)
        elif item.tag == 9:
            raw = nested(item, where)
    elements = _count(walk, extents, f"{where} {name!r}")
    if data_type != _INT64 or elements > _SHAPE_ELEMENTS_MAX:
        return name, _Tensor(elements, None)
    if raw is not None:
        usable = raw[: len(raw) // 8 * 8]
        integers = [
            int.from_bytes(usable[at : at + 8], "little", signed=True)
            for at in range(0, min(len(usable), 8 * _SHAPE_ELEMENTS_MAX), 8)
        ]
    return name, _Tensor(elements, tuple(integers))


def _few_int64s(item: Field, where: str) -> list[int]:
    if len(item.view) > 10 * _SHAPE_ELEMENTS_MAX:
        return []
    return int64s(item, where, 10 * _SHAPE_ELEMENTS_MAX)


def _tensor_name(message: memoryview, where: str) -> str:
    for item in fields(message, where, frozenset()):
        if item.tag == 8:
            return text(item, where)
    return ""


def _count(walk: _Walk, extents: list[int], where: str) -> int:
    if len(extents) > _RANK_MAX or any(extent < 0 for extent in extents):
        raise BundleError(f"{where}: its shape {extents[:9]} is impossible")
    elements = math.prod(extents)
    walk.elements += elements
    if walk.elements > walk.elements_max:
        raise BundleError(
            f"{where}: constants and initializers have {walk.elements:,} elements, "
            f"at most {walk.elements_max:,} are accepted"
        )
    return elements
