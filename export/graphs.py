"""A Python function of tensors -> one clean ONNX graph of standard operators."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from export.decompositions import decomposition_table
from export.operators import TRANSLATIONS, expand
from export.quiet import quiet
from export.simplify import simplify, writes
from fedtide.errors import BundleError, ExportError
from fedtide.onnx_scan import scan_model

IR_VERSION_MAX = 10
"""What onnxruntime 1.19 reads."""


@dataclass(frozen=True)
class Port:
    """One input of a graph: an example, and whether its first dimension is the batch."""

    name: str
    example: torch.Tensor
    batched: bool = False


class UnsupportedOperatorError(Exception):
    """An ATen operator has no ONNX form; `operator` is its name without the overload."""

    def __init__(self, operator: str, reason: str) -> None:
        super().__init__(f"{operator}: {reason}")
        self.operator = operator


def build_graph(
    function: Callable[..., tuple[torch.Tensor, ...]],
    inputs: Sequence[Port],
    outputs: Sequence[str],
    opset: int,
) -> onnx.ModelProto:
    """Trace `function(*inputs)` and translate it; a batch of any size is one graph's matter.

    Raises:
        UnsupportedOperatorError: an operator cannot be translated.
        ExportError: anything else went wrong.
    """
    try:
        with quiet():
            traced = _trace(function, inputs)
            _check_operators(traced)
            model = _translate(traced, inputs, outputs, opset)
    except (UnsupportedOperatorError, ExportError):
        raise
    except Exception as exc:
        operator = _blamed_operator(exc)
        if operator is not None:
            raise UnsupportedOperatorError(operator, "torch.onnx cannot translate it") from exc
        raise ExportError(
            f"torch could not trace the model: {first_line(exc)}",
            hint="control flow that depends on values, and batches of fixed size, cannot be traced",
        ) from exc
    expand(model)
    _check_batch(model, inputs)
    _clean(model)
    try:
        scan_model(model.SerializeToString())
    except BundleError as exc:
        raise ExportError(f"the exported graph would be refused by devices: {exc}") from exc
    return model


def _trace(function: Callable[..., Any], inputs: Sequence[Port]) -> fx.GraphModule:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [
        mode.from_tensor(
            port.example,
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[
                    DimDynamic.DYNAMIC if port.batched and axis == 0 else DimDynamic.STATIC
                    for axis in range(port.example.dim())
                ]
            ),
            source=ConstantSource(f"input_{index}"),
        )
        for index, port in enumerate(inputs)
    ]
    # oneDNN and fused attention kernels have backward operators of their own: keep to plain ones.
    with (
        torch.backends.mkldnn.flags(enabled=False),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        mode,
    ):
        traced = make_fx(function, decomposition_table=decomposition_table())(*fakes)
        if any(map(writes, traced.graph.nodes)):
            # Merging equal expressions is wrong where one of them is written to afterwards.
            # Constants that are written to are beyond this: then nothing is merged.
            functional = torch.func.functionalize(traced)
            with contextlib.suppress(RuntimeError):
                traced = make_fx(functional, decomposition_table=decomposition_table())(*fakes)
    return fx.GraphModule(traced, simplify(traced.graph))


def _check_operators(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.removeprefix("aten::")
            if torch.Tag.nondeterministic_seeded in node.target.tags:
                raise UnsupportedOperatorError(name, "it is random; only dropout has a seeded form")


class _Traced(nn.Module):
    """`torch.export` wants a module in evaluation mode with positional tensors."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.traced(*tensors)


def _translate(
    traced: fx.GraphModule, inputs: Sequence[Port], outputs: Sequence[str], opset: int
) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if port.batched else None for port in inputs)
    program = torch.onnx.export(
        _Traced(traced).eval(),
        tuple(port.example for port in inputs),
        dynamo=True,
        opset_version=opset,
        external_data=False,
        verbose=False,
        input_names=[port.name for port in inputs],
        output_names=list(outputs),
        dynamic_shapes=(shapes,),
        custom_translation_table=TRANSLATIONS,
    )
    if program is None:
        raise ExportError("torch.onnx returned no program")
    model: onnx.ModelProto = program.model_proto
    return model


def _check_batch(model: onnx.ModelProto, inputs: Sequence[Port]) -> None:
    """Refuse a graph that works for the traced batch size only."""
    batched = {port.name for port in inputs if port.batched}
    for value in model.graph.input:
        if value.name in batched and not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(
                "the model works for one size of the batch only once it is traced",
                hint="use x.shape[0] or -1 where the model needs the size of the batch",
            )


def _clean(model: onnx.ModelProto) -> None:
    """Drop what no device needs; what stays depends on the model only."""
    graph = model.graph
    model.ir_version = min(model.ir_version, IR_VERSION_MAX)
    model.producer_name, model.producer_version = "fedtide", ""
    graph.name = "graph"
    for message in (model, graph):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    graph.ClearField("value_info")
    for index, node in enumerate(graph.node):
        for name in ("metadata_props", "doc_string"):
            node.ClearField(name)
        # onnxruntime 1.19 derives names of fused nodes from these, and they must differ.
        node.name = f"n{index}"
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    used = {node.domain for node in graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    _drop_unused_outputs(graph)


def _drop_unused_outputs(graph: onnx.GraphProto) -> None:
    """MaxPool with an unused second output would compute it nevertheless; others need theirs."""
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    for node in graph.node:
        while node.op_type == "MaxPool" and len(node.output) > 1 and node.output[-1] not in used:
            del node.output[-1]


def _blamed_operator(exc: BaseException) -> str | None:
    """The ATen operator that an exception, or a cause of it, names."""
    cause: BaseException | None = exc
    while cause is not None:
        found = re.search(r"(?:op='|\b)aten[.:]+(\w+)", str(cause))
        if found:
            return found.group(1)
        cause = cause.__cause__ or cause.__context__
    return None


def first_line(exc: BaseException) -> str:
    """Kind of an error, and the first line of its message: torch's go on for pages."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0] if lines else ''}"
