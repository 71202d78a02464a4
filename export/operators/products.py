"""Matrix products as Gemm, with the transposes of its operands in its attributes.

onnxruntime folds most transposes itself, but not all (a weight of 10,000 x 192 was transposed in
every step), and other runtimes need not fold any.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import helper
from onnxscript import opset18

aten = torch.ops.aten


def _mm(a: Any, b: Any) -> Any:
    return opset18.Gemm(a, b)


TRANSLATIONS = {aten.mm.default: _mm}


def expand(model: onnx.ModelProto) -> None:
    """Fold transposes of matrices into the Gemms that read them, in place."""
    graph = model.graph
    transposed = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and _permutation(node) == [1, 0]
    }
    for node in graph.node:
        if node.op_type != "Gemm":
            continue
        for index, name in ((0, "transA"), (1, "transB")):
            source = transposed.get(node.input[index])
            if source is not None:
                node.input[index] = source
                _flip(node, name)
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    for node in [n for n in graph.node if n.output[0] in transposed and n.output[0] not in used]:
        graph.node.remove(node)


def _permutation(node: onnx.NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def _flip(node: onnx.NodeProto, name: str) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = 1 - attribute.i
            return
    node.attribute.append(helper.make_attribute(name, 1))
