"""Recurrences over time: operators for PyTorch, each of which becomes one ONNX Scan.

Only the product with the recurrent weight and pointwise work remain in it; the projection of the
inputs and the gradients of the weights are the caller's, for all steps at once. Unrolled, eighty
steps of two LSTM layers are ten thousand nodes that take seconds to load, and run half as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from export.operators import gru, lstm, rnn
from export.operators.recurrence import DOMAIN

TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    **lstm.TRANSLATIONS,
    **gru.TRANSLATIONS,
    **rnn.TRANSLATIONS,
}
_SCANS: dict[str, Callable[[onnx.NodeProto, set[str]], list[onnx.NodeProto]]] = {
    **lstm.SCANS,
    **gru.SCANS,
    **rnn.SCANS,
}


def expand(model: onnx.ModelProto) -> None:
    """Replace the nodes that the translations made by Scans, in place."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        scan = _SCANS.get(node.op_type) if node.domain == DOMAIN else None
        nodes += [node] if scan is None else scan(node, used)
    # A copy, since clearing the graph would clear the nodes that stay.
    copies = onnx.GraphProto()
    copies.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(copies.node)
