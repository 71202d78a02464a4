"""Looks into an ONNX file before onnxruntime does, and refuses what a device must not run.

Refused: tensors whose data lie outside the file, sparse tensors and functions (`onnx_graph`),
operators without a rule, results that no device has memory for or whose size cannot be told
beforehand, more operations than a step may take (`onnx_footprint`), and files over limits.

The size of every result is worked out for a batch of 1 and of `BATCH_LARGE`. What that cannot
bound is left to the process's memory limit: the memory that an operator needs for itself, larger
batches, and graphs with operators of onnxruntime's own (`extra_domains`), which have no rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import fedtide.onnx_window_rules  # noqa: F401 - adds its rules
from fedtide import limits
from fedtide.errors import BundleError
from fedtide.onnx_footprint import Footprint, footprint
from fedtide.onnx_graph import Budget, Graph, read_model
from fedtide.onnx_rules import RULES

OPERATORS = frozenset(RULES) | {"Scan"}
"""Operators of ai.onnx that a graph may use: those whose results' shapes are known beforehand.

Arithmetic without files or randomness (Dropout is the identity in evaluation graphs). Of control
flow only Scan: it runs its body once for every slice of its inputs, so tensors that exist already
bound its iterations. Loop and If, which go on for as long as a value says, are not here, and
neither are MaxUnpool and Col2Im, which write wherever their inputs say (before 1.25)."""

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

LIVE_BYTES_MAX = 1 << 30
"""Most memory that results may take at one time, for each example, and besides that
`_MODEL_COPIES` times the graph's declared inputs and constants."""
_MODEL_COPIES = 4
BATCH_LARGE = 64
_ORT_FORMAT = b"ORTM"
"""Where onnxruntime finds this at byte 4 it reads a flatbuffer, whatever else the bytes are."""

_NO_DOMAINS: Mapping[str, frozenset[str]] = {}


@dataclass(frozen=True)
class Scan:
    """What a model that passed holds."""

    nodes: int
    initializer_elements: int
    operators: Mapping[tuple[str, str], int]
    """How often each (domain, op type) occurs; the domain of ai.onnx is the empty string."""
    footprint: Footprint
    """Memory and work of a run with one example."""
    footprint_large: Footprint
    """The same with `BATCH_LARGE` examples."""

    def peak_bytes(self, batch: int) -> int:
        """About the most memory that results take at one time in a run with `batch` examples."""
        one, large = self.footprint.peak_bytes, self.footprint_large.peak_bytes
        return one + (large - one) * (batch - 1) // (BATCH_LARGE - 1)


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
    budget = Budget(elements_max)
    graph = read_model(raw, budget)
    _check_operators(graph, {**extra_domains, "": OPERATORS | extra_domains.get("", frozenset())})
    strict = not extra_domains
    one, large = (footprint(graph, batch, RULES, strict=strict) for batch in (1, BATCH_LARGE))
    for batch, found in ((1, one), (BATCH_LARGE, large)):
        most = LIVE_BYTES_MAX * batch + _MODEL_COPIES * one.held_bytes
        if found.peak_bytes > most:
            raise BundleError(
                f"a run with a batch of {batch} needs {found.peak_bytes:,} bytes at one time, "
                f"at most {most:,} are accepted"
            )
        if found.operations > limits.OPERATIONS_MAX * batch:
            raise BundleError(
                f"a run with a batch of {batch} takes {found.operations:,} operations, "
                f"at most {limits.OPERATIONS_MAX * batch:,} are accepted"
            )
    return Scan(budget.nodes, budget.elements, budget.operators, one, large)


def _check_operators(graph: Graph, allowed: Mapping[str, frozenset[str]]) -> None:
    for node in graph.nodes:
        if node.domain not in allowed:
            raise BundleError(f"{node.spot}: operators of domain {node.domain!r} are not accepted")
        if node.op_type not in allowed[node.domain]:
            raise BundleError(
                f"{node.spot}: operator {node.op_type!r} is not on the list of accepted ones"
            )
        for body in node.attributes.values():
            if isinstance(body, Graph):
                _check_operators(body, allowed)
