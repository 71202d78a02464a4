"""What a training step will cost a device: operations, and memory beside the model's vectors."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from export.inspection import Model
from export.quiet import quiet
from export.reference import gradients
from fedtide.errors import ExportError
from fedtide.manifest import BASE_PREFIX, INPUT_PREFIX, Estimates
from fedtide.runtime import import_onnxruntime, session_options

_EXAMPLES = 4
_BATCHES_RUN = (2, 3)
"""Each value's size is a straight line through its sizes in these two batches, one apart."""
_BATCHES = (1, 8, 64, 128)
"""Memory rises as between the last two of these batches, and is not less than in any."""

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Their result is their first input's memory."""
_IN_PLACE = frozenset(
    """
    Abs Add Cast Ceil Clip Div Elu Erf Exp Floor HardSigmoid LeakyRelu Log Mul Neg Not Pow
    Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Sub Tanh
    """.split()  # noqa: SIM905 - a table
)
"""onnxruntime writes their result over an input of the same size that is not needed any more."""


def estimate(model: Model, train: onnx.ModelProto) -> Estimates:
    """For one step of plain SGD of `model`, whose portable training step is `train`.

    Raises:
        ExportError: the step fails.
    """
    first, second = (_sizes(model, train, batch) for batch in _BATCHES_RUN)
    peaks = {}
    for batch in _BATCHES:
        ahead = batch - _BATCHES_RUN[0]
        sizes = {name: first[name] + ahead * (second[name] - first[name]) for name in first}
        peaks[batch] = peak_bytes(train.graph, sizes)
    small, large = _BATCHES[-2:]
    slope = max(0, (peaks[large] - peaks[small]) // (large - small))
    return Estimates(
        flops_per_example=_flops(model) // _EXAMPLES,
        memory_fixed_bytes=max(0, *(peak - slope * batch for batch, peak in peaks.items())),
        memory_per_example_bytes=slope,
    )


def _flops(model: Model) -> int:
    """Of matrix products, convolutions and attention, forward and backward."""
    counter = FlopCounterMode(display=False)
    x, y = model.example_batch(_EXAMPLES)
    # oneDNN's recurrent layers are one operator, which the counter does not know.
    with quiet(), torch.backends.mkldnn.flags(enabled=False), counter:
        gradients(model, model.values(), x, y, seed=0)
    return int(counter.get_total_flops())


def _sizes(model: Model, train: onnx.ModelProto, batch: int) -> dict[str, int]:
    """Bytes of the batch, the constants, and every result of a node, by running the step.

    Shape inference of onnx does not know what comes after a Range, as in dropout.
    """
    x, y = model.example_batch(batch)
    feeds = {"x": x, "y": y, "scale": torch.tensor(-0.1), "denominator": torch.tensor(0.0)}
    if model.random:
        feeds["seed"] = torch.tensor(0)
    for tensor, value in zip(model.tensors, model.values(), strict=True):
        feeds[INPUT_PREFIX + tensor.name] = value
        if tensor.kind == "parameter":
            feeds[BASE_PREFIX + tensor.name] = value
    copy = onnx.ModelProto()
    copy.CopyFrom(train)
    names = [name for node in train.graph.node for name in node.output if name]
    outputs = {value.name for value in train.graph.output}
    copy.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    ort = import_onnxruntime()
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        given = {item.name for item in session.get_inputs()}
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(value.numpy())
            for name, value in feeds.items()
            if name in given
        }
        results = session.run_with_ort_values(names, values)
    except Exception as exc:  # its errors share no base class
        raise ExportError(f"the training step fails in onnxruntime: {exc}") from exc
    sizes = {name: value.numpy().nbytes for name, value in zip(names, results, strict=True)}
    sizes |= {
        item.name: onnx.numpy_helper.to_array(item).nbytes for item in train.graph.initializer
    }
    return sizes | {"x": x.nbytes, "y": y.nbytes}


def peak_bytes(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    """Most bytes alive at once while the nodes run in onnxruntime's order.

    The batch, constants and results in between count; the model's tensors, old and new, do not. A
    result lives from its node to its last reader.
    """
    outside = {value.name for value in (*graph.input, *graph.output)}
    nodes = _in_order(graph)
    root: dict[str, str] = {}
    for node in nodes:
        if node.op_type in _VIEWS and not outside & {node.input[0], node.output[0]}:
            root[node.output[0]] = root.get(node.input[0], node.input[0])
    last_use: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in _read_by(node):
            last_use[root.get(name, name)] = index
    constants = {item.name for item in graph.initializer}
    alive: dict[str, int] = {}
    """Bytes of each piece of memory that is in use."""
    always = sizes["x"] + sizes["y"] + sum(sizes[name] for name in constants)
    peak = 0
    for index, node in enumerate(nodes):
        dying = {name for name in alive if last_use.get(name, -1) == index}
        for name in node.output:
            if not name or name in outside or name in root:
                continue
            if node.op_type in _IN_PLACE:
                taken = next((n for n in dying if alive[n] == sizes[name]), None)
                if taken is not None:
                    dying.remove(taken)
                    del alive[taken]
            alive[name] = sizes[name]
        peak = max(peak, sum(alive.values()))
        for name in dying | {name for name in node.output if last_use.get(name, -1) < index}:
            alive.pop(name, None)
    return always + peak


def _in_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """As onnxruntime runs them: depth first, from the last node that nobody reads, back through
    the last of its inputs (`Graph::ReverseDFSFrom` of onnxruntime 1.19 to 1.31)."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    inputs = [
        sorted({makers[name] for name in _read_by(node) if name in makers}) for node in graph.node
    ]
    read = {index for indices in inputs for index in indices}
    stack = [(index, False) for index in range(len(graph.node)) if index not in read]
    seen: set[int] = set()
    order = []
    while stack:
        index, inputs_ran = stack.pop()
        if inputs_ran:
            order.append(graph.node[index])
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack += [(before, False) for before in inputs[index] if before not in seen]
    return order


def _read_by(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node, and what its subgraphs read of the graph around them."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                names += _read_by(inner)
    return names
