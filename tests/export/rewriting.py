"""A rewritten model compared with PyTorch: its forward graph in eager, its step in ONNX."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from export import ModelSpec
from export.inspection import inspect_model
from export.portable_step import train_graph
from export.quiet import quiet
from export.rewrites import Rewrite
from fedtide.runtime import load_session

TOLERANCE = 2e-6
"""Of a gradient of order 1 and below; measured errors are about 2e-7."""


def gradients(
    function: nn.Module, inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A module's scalar result, and its gradients by the parameters."""
    result = function(*inputs)
    return result.detach(), list(
        torch.autograd.grad(
            result, list(function.parameters()), allow_unused=True, materialize_grads=True
        )
    )


def assert_same_in_eager(
    module: nn.Module, inputs: Sequence[torch.Tensor], rewrites: Sequence[Rewrite]
) -> str:
    """Rewrite `module`, which returns a scalar, and compare result and gradients.

    Each rewrite must apply. The batch of the inputs is that of the trace; two more are tried.
    Returns the rewritten graph's code.
    """
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.export.export(
            module, tuple(inputs), dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
        )
        rewritten = program.module()
    for rewrite in rewrites:
        assert rewrite(rewritten.graph) > 0, rewrite.__module__
    rewritten.graph.eliminate_dead_code()
    rewritten.graph.lint()
    rewritten.recompile()
    named = dict(rewritten.named_parameters())
    assert list(named) == [name for name, _ in module.named_parameters()]
    for size in (inputs[0].shape[0], 3, 1):
        part = [value[:size] for value in inputs]
        expected, expected_gradients = gradients(module, part)
        result, results = gradients(rewritten, part)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=TOLERANCE)
        for name, got, wanted in zip(named, results, expected_gradients, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=TOLERANCE, msg=name)
    return str(rewritten.code)


def assert_same_step(spec: ModelSpec, rewrites: Sequence[Rewrite], opset: int) -> onnx.ModelProto:
    """One step in onnxruntime for batches of 5, 3 and 1 from one graph; returns the graph."""
    model = inspect_model(spec, "model")
    graph = train_graph(model, opset, rewrites)
    session = load_session(graph.SerializeToString())
    scale = -0.5
    for size in (5, 3, 1):
        x, y = model.example_batch(size, seed=size)
        module = copy.deepcopy(model.module).train()
        loss, weight = model.loss.measure(module(x), y)
        expected = torch.autograd.grad(loss / weight, list(module.parameters()))
        feeds: dict[str, Any] = {"x": x.numpy(), "y": y.numpy()}
        feeds |= {"scale": np.float32(scale), "denominator": np.float32(0)}
        for name, parameter in module.named_parameters():
            feeds["tensor." + name] = feeds["base." + name] = parameter.detach().numpy()
        wanted = {value.name for value in session.get_inputs()}
        feeds = {name: np.asarray(value) for name, value in feeds.items() if name in wanted}
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        np.testing.assert_allclose(outputs["loss"], loss.item(), rtol=1e-5)
        for (name, parameter), change in zip(module.named_parameters(), expected, strict=True):
            new = (parameter + scale * change).detach().numpy()
            np.testing.assert_allclose(
                outputs["new." + name], new, rtol=1e-5, atol=TOLERANCE, err_msg=name
            )
    return graph
