"""The portable training step, the evaluation graph and the graph for deployment.

Their inputs and outputs are specified in docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.func import functional_call, grad_and_value

from export.blame import explain
from export.graphs import Port, UnsupportedOperatorError, build_graph, example_batch_size
from export.inspection import Model
from fedtide.manifest import INPUT_PREFIX, OUTPUT_PREFIX

Tensors = tuple[torch.Tensor, ...]


def train_graph(model: Model, opset: int) -> onnx.ModelProto:
    """(x, y, lr, tensor.*) -> (loss, new.*): one step of plain SGD on one batch.

    Raises:
        ExportError: an operator has no portable form, or the model cannot be traced.
    """
    names = [tensor.name for tensor in model.tensors]
    trainable = [index for index, tensor in enumerate(model.tensors) if tensor.trainable]
    module = model.module.train()

    def step(x: torch.Tensor, y: torch.Tensor, lr: torch.Tensor, *tensors: torch.Tensor) -> Tensors:
        def objective(chosen: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
            values = dict(zip(names, tensors, strict=True))
            values.update((names[i], t) for i, t in zip(trainable, chosen, strict=True))
            loss = loss_of(model, _call(module, values, x), y)
            # The gradient of -lr * loss is what plain SGD adds: scaling the one number at the
            # end of the forward pass is cheaper than scaling every gradient.
            return -lr * loss, loss

        chosen = tuple(tensors[i] for i in trainable)
        updates, (_, loss) = grad_and_value(objective, has_aux=True)(chosen)
        return loss, *(old + update for old, update in zip(chosen, updates, strict=True))

    x, y = model.example_batch(example_batch_size())
    ports = [Port("x", x, True), Port("y", y, True), Port("lr", torch.tensor(0.1))]
    ports += _tensor_ports(model)
    outputs = ["loss", *(OUTPUT_PREFIX + names[i] for i in trainable)]
    return _build(model, step, ports, outputs, opset)


def evaluation_graph(model: Model, opset: int) -> onnx.ModelProto:
    """(x, y, tensor.*) -> (loss, correct): mean loss, and correct predictions of classifiers.

    Raises:
        ExportError: see `train_graph`.
    """
    module = model.module.eval()

    def evaluate(x: torch.Tensor, y: torch.Tensor, *tensors: torch.Tensor) -> Tensors:
        values = {t.name: v for t, v in zip(model.tensors, tensors, strict=True)}
        output = _call(module, values, x)
        loss = loss_of(model, output, y)
        if model.classes is None:
            return (loss,)
        return loss, (output.argmax(1) == y).sum()

    x, y = model.example_batch(example_batch_size())
    ports = [Port("x", x, True), Port("y", y, True), *_tensor_ports(model)]
    outputs = ["loss"] if model.classes is None else ["loss", "correct"]
    return _build(model, evaluate, ports, outputs, opset)


def inference_graph(model: Model, opset: int) -> onnx.ModelProto:
    """(x) -> (output), the manifest's tensors as initializers under their own names.

    Raises:
        ExportError: see `train_graph`.
    """
    module = model.module.eval()

    def predict(x: torch.Tensor, *tensors: torch.Tensor) -> Tensors:
        values = {t.name: v for t, v in zip(model.tensors, tensors, strict=True)}
        return (_call(module, values, x),)

    x, _ = model.example_batch(example_batch_size())
    graph = _build(model, predict, [Port("x", x, True), *_tensor_ports(model)], ["output"], opset)
    _embed(graph, model)
    return graph


def loss_of(model: Model, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean loss of output[b, ...] and labels y[b, ...]."""
    if model.loss == "mse":
        difference = output - y
        return (difference * difference).mean()
    return -output.log_softmax(1).gather(1, y[:, None]).mean()


def _call(module: nn.Module, values: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = functional_call(module, values, (x,))
    return result


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
