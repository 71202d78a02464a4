"""The portable training step, the evaluation graph and the graph for deployment.

Their inputs and outputs are specified in docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from export.blame import explain
from export.forward import EXAMPLES, Tensors, trace_forward
from export.graphs import Port, UnsupportedOperatorError, build_graph
from export.inspection import Model
from export.randomness import SeededRandomness
from export.rewrites import REWRITES, Rewrite, embedding, recurrent
from fedtide.errors import ExportError
from fedtide.manifest import BASE_PREFIX, INPUT_PREFIX, OUTPUT_PREFIX, WEIGHT_SUFFIX


def train_graph(
    model: Model,
    opset: int,
    rewrites: Sequence[Rewrite] = REWRITES,
    progress: Callable[[str], None] = lambda _: None,
) -> onnx.ModelProto:
    """(x, y, scale, denominator, [seed], tensor.*, base.*) -> (loss, weight, new.*).

    new = base + scale * gradient of the loss / its weight: a step of plain SGD on one batch, or
    a part of one that is accumulated. `progress` names what is done.

    Raises:
        ExportError: an operator has no portable form, or the model cannot be traced.
    """
    names = [tensor.name for tensor in model.tensors]
    trained = [tensor.name for tensor in model.tensors if tensor.kind == "parameter"]
    statistics = [tensor.name for tensor in model.tensors if tensor.kind == "statistic"]
    progress("tracing the forward pass")
    forward = trace_forward(model, _objective(model), labels=True, training=True, rewrites=rewrites)
    progress("differentiating and translating the training step")

    def step(
        x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, denominator: torch.Tensor,
        *rest: torch.Tensor,
    ) -> Tensors:  # fmt: skip
        seed, rest = (rest[0], rest[1:]) if model.random else (None, rest)
        values = dict(zip(names, rest, strict=False))
        bases = rest[len(names) :]
        leaves = {name: values[name].detach().requires_grad_() for name in trained}
        changed = {name: values[name].clone() for name in statistics}
        with SeededRandomness(seed), torch.enable_grad():
            loss, weight = forward((x, y), {**values, **leaves, **changed})
            # Scaling the one number at the end of the forward pass is cheaper than scaling every
            # gradient, and lets a weight's update become one Gemm.
            divisor = torch.where(denominator > 0, denominator, weight)
            # A batch whose labels all weigh nothing changes nothing.
            factor = torch.where(divisor > 0, scale / divisor, 0.0)
            updates = torch.autograd.grad(
                loss * factor, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        new = [base + update for base, update in zip(bases, updates, strict=True)]
        return loss.detach(), weight.detach(), *new, *(changed[name] for name in statistics)

    x, y = model.example_batch(EXAMPLES)
    ports = [Port("x", x, True), Port("y", y, True)]
    ports += [Port("scale", torch.tensor(-0.1)), Port("denominator", torch.tensor(0.0))]
    if model.random:
        ports.append(Port("seed", torch.tensor(0)))
    values = dict(zip(names, model.values(), strict=True))
    ports += _tensor_ports(model)
    ports += [Port(BASE_PREFIX + name, values[name]) for name in trained]
    outputs = ["loss", "weight", *(OUTPUT_PREFIX + name for name in (*trained, *statistics))]
    return _build(model, step, ports, outputs, opset)


def evaluation_graph(
    model: Model, opset: int, rewrites: Sequence[Rewrite] = REWRITES
) -> onnx.ModelProto:
    """(x, y, tensor.*) -> (NAME, NAME.weight) of the loss and each metric, sums over the batch.

    Raises:
        ExportError: see `train_graph`.
    """
    measures = {"loss": model.loss.measure, **model.metrics}

    def evaluate(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Tensors:
        output = module(x)
        return tuple(part for measure in measures.values() for part in measure(output, y))

    x, y = model.example_batch(EXAMPLES)
    ports = [Port("x", x, True), Port("y", y, True), *_tensor_ports(model)]
    outputs = [name + suffix for name in measures for suffix in ("", WEIGHT_SUFFIX)]
    forward = trace_forward(model, evaluate, labels=True, training=False, rewrites=rewrites)
    names = [tensor.name for tensor in model.tensors]
    return _build(
        model,
        lambda x, y, *tensors: forward((x, y), dict(zip(names, tensors, strict=True))),
        ports,
        outputs,
        opset,
    )


def inference_graph(model: Model, opset: int) -> onnx.ModelProto:
    """(x) -> (output), the manifest's tensors as initializers under their own names.

    Raises:
        ExportError: see `train_graph`.
    """
    # With constant weights onnxruntime has better convolutions of its own; recurrent layers
    # would be unrolled.
    forward = trace_forward(
        model,
        lambda module, x: (module(x),),
        labels=False,
        training=False,
        rewrites=(recurrent.rewrite,),
    )
    names = [tensor.name for tensor in model.tensors]
    x, _ = model.example_batch(EXAMPLES)
    graph = _build(
        model,
        lambda x, *tensors: forward((x,), dict(zip(names, tensors, strict=True))),
        [Port("x", x, True), *_tensor_ports(model)],
        ["output"],
        opset,
    )
    _embed(graph, model)
    return graph


def loss_graph(model: Model, opset: int) -> onnx.ModelProto:
    """(x, y, [seed]) -> (loss, weight, new.*): what `onnxruntime.training` differentiates.

    The mean loss in training mode, its weight, and the new statistics; the manifest's tensors
    are initializers under their own names.

    Raises:
        ExportError: see `train_graph`; or its gradient would not be PyTorch's.
    """
    forward = trace_forward(model, _objective(model), labels=True, training=True)
    if embedding.has_constant_row(forward.graph_module.graph):
        raise ExportError("an embedding has a padding row, which onnxruntime.training would train")
    names = [tensor.name for tensor in model.tensors]
    statistics = [tensor.name for tensor in model.tensors if tensor.kind == "statistic"]

    def step(x: torch.Tensor, y: torch.Tensor, *rest: torch.Tensor) -> Tensors:
        seed, rest = (rest[0], rest[1:]) if model.random else (None, rest)
        values = dict(zip(names, rest, strict=True))
        values |= {name: values[name].clone() for name in statistics}
        with SeededRandomness(seed):
            loss, weight = forward((x, y), values)
        return loss / weight, weight.clone(), *(values[name] for name in statistics)

    x, y = model.example_batch(EXAMPLES)
    ports = [Port("x", x, True), Port("y", y, True)]
    if model.random:
        ports.append(Port("seed", torch.tensor(0)))
    outputs = ["loss", "weight", *(OUTPUT_PREFIX + name for name in statistics)]
    graph = _build(model, step, [*ports, *_tensor_ports(model)], outputs, opset)
    _embed(graph, model)
    return graph


def _objective(model: Model) -> Callable[..., Tensors]:
    def objective(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Tensors:
        return model.loss.measure(module(x), y)

    return objective


def _tensor_ports(model: Model) -> list[Port]:
    return [
        Port(INPUT_PREFIX + tensor.name, value)
        for tensor, value in zip(model.tensors, model.values(), strict=True)
    ]


def _build(
    model: Model,
    function: Callable[..., Tensors],
    ports: list[Port],
    outputs: list[str],
    opset: int,
) -> onnx.ModelProto:
    try:
        return build_graph(function, ports, outputs, opset)
    except UnsupportedOperatorError as exc:
        raise explain(model, exc) from exc


def _embed(graph: onnx.ModelProto, model: Model) -> None:
    """Turn the inputs `tensor.*` into initializers with the manifest's names."""
    renamed = {INPUT_PREFIX + tensor.name: tensor.name for tensor in model.tensors}
    taken: set[Any] = {name for node in graph.graph.node for name in node.output}
    taken |= {tensor.name for tensor in graph.graph.initializer}
    others = {name: f"{name}__value" for name in taken & set(renamed.values())}
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, others.get(name, name))
        for index, name in enumerate(node.output):
            node.output[index] = others.get(name, name)
    for initializer in graph.graph.initializer:
        initializer.name = others.get(initializer.name, initializer.name)
    kept = [value for value in graph.graph.input if value.name not in renamed]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    for tensor, value in zip(model.tensors, model.values(), strict=True):
        graph.graph.initializer.append(numpy_helper.from_array(value.numpy(), tensor.name))
