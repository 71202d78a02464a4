"""What the recurrences share: a node of our own domain that becomes a Scan.

A Scan's body runs once for each step, so it pays to have few nodes in it, and nothing that could
be done for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from onnxscript.values import Op, Opset

DOMAIN = "fedtide"
Steps = list[tuple[torch.Tensor, ...]]


def translation(name: str, inputs: int, outputs: int) -> Callable[..., Any]:
    """A translation of an operator (tensors, flag) to a node `name` of our domain."""
    schema = onnx.defs.OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[onnx.defs.OpSchema.FormalParameter(f"x{n}", "T") for n in range(inputs)],
        outputs=[onnx.defs.OpSchema.FormalParameter(f"y{n}", "T") for n in range(outputs)],
        type_constraints=[("T", ["tensor(float)"], "float32")],
        attributes=[onnx.defs.OpSchema.Attribute("reverse", onnx.defs.OpSchema.AttrType.INT)],
    )
    operator = Op(Opset(DOMAIN, 1), name, schema)

    def translate(*arguments: Any) -> Any:
        *tensors, reverse = arguments
        return operator(*tensors, reverse=int(reverse))

    return translate


def order(steps: int, reverse: bool) -> range:
    """The steps in the order in which they are taken."""
    return range(steps - 1, -1, -1) if reverse else range(steps)


def stacked(rows: Steps, reverse: bool) -> list[torch.Tensor]:
    """What the steps have emitted, [steps, ...] each, in the order of time."""
    rows = rows[::-1] if reverse else rows
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def transposed(node: onnx.NodeProto, weight: str) -> tuple[onnx.NodeProto, str]:
    """A node before the Scan of `node`, and its result: weight[n,h] -> [h,n].

    For a product with weight[n,h] in each step. onnxruntime repacks a weight that is no constant
    each time, and reads rows of n values for transB=1 a tenth faster than columns of them.
    """
    name = f"{node.output[0]}.weight"
    return helper.make_node("Transpose", [weight], [name], perm=[1, 0]), name


class Body:
    """The body of a Scan that takes the place of `node`, built node by node.

    Names inside are unique in the whole model; outer values are used under their own names.
    """

    def __init__(self, node: onnx.NodeProto, *, backward: bool = False) -> None:
        self._node = node
        self._reverse = bool(helper.get_node_attr_value(node, "reverse")) != backward
        self._prefix = f"{node.output[0]}.step"
        self._nodes: list[onnx.NodeProto] = []
        self._names = 0
        self._states: dict[str, str] = {}
        self._streams: dict[str, str] = {}

    def state(self, initial: str) -> str:
        """A value that each step hands to the next; `initial` is the outer first one."""
        name = self._name()
        self._states[name] = initial
        return name

    def stream(self, outer: str) -> str:
        """This step's part of an outer value [steps, ...]."""
        name = self._name()
        self._streams[name] = outer
        return name

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output."""
        return self.split(operator, 1, *inputs, **attributes)[0]

    def split(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Append a node with several outputs."""
        names = [self._name() for _ in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def scan(self, states: list[str], emitted: list[str], used: set[str]) -> onnx.NodeProto:
        """The node: its outputs are the last states, then all steps of what is emitted.

        What nobody outside uses is not computed.
        """
        outer = list(self._node.output)
        pairs = list(zip(outer[len(states) :], emitted, strict=True))
        # onnxruntime writes what is emitted straight to its place; a state needs another name.
        kept = [
            (name, self("Identity", value) if value in {*states, *self._states} else value)
            for name, value in pairs
            if name in used
        ]
        inner = [*states, *(value for _, value in kept)]
        body = helper.make_graph(
            _needed(self._nodes, inner),
            f"{self._prefix}s",
            [_matrix(name) for name in (*self._states, *self._streams)],
            [_matrix(name) for name in inner],
        )
        directions: dict[str, Any] = {
            "scan_input_directions": [int(self._reverse)] * len(self._streams),
            "scan_output_directions": [int(self._reverse)] * len(kept),
        }
        return helper.make_node(
            "Scan",
            [*self._states.values(), *self._streams.values()],
            [*outer[: len(states)], *(name for name, _ in kept)],
            body=body,
            num_scan_inputs=len(self._streams),
            **{key: value for key, value in directions.items() if value},
        )

    def _name(self) -> str:
        self._names += 1
        return f"{self._prefix}.{self._names}"


def _matrix(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])


def _needed(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    needed, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
