"""How much memory and time a run of an ONNX graph takes, from the shapes of its inputs alone.

Each accepted operator has a rule that gives the shapes of its results (`onnx_rules`). What cannot
be followed to the end is refused: a graph's memory must be known before it runs. So are a few
attributes and divisors that end the process in some versions of onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedtide.errors import BundleError
from fedtide.onnx_calls import Call, Rule, Scratch, Value
from fedtide.onnx_graph import Graph, Node
from fedtide.onnx_operations import NODE_OPERATIONS, operations
from fedtide.onnx_values import check_divisor, check_empty, results

_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 9: 1, 10: 2, 12: 4, 16: 2}
"""By TensorProto.DataType; others have 8."""
WORK_BYTES_MAX = 1 << 44
"""Most bytes of results that one run may write: minutes of a device's time."""


class Footprint(NamedTuple):
    """What a run of the graph takes beside its inputs."""

    peak_bytes: int
    """Most memory of results that are needed at one time."""
    work_bytes: int
    """Size of all results, those of a body times its iterations."""
    operations: int
    """Those of all nodes, of a body times its iterations (`onnx_operations`)."""
    held_bytes: int
    """Size of the declared inputs and the constants."""


def footprint(graph: Graph, batch: int, rules: Mapping[str, Rule], *, strict: bool) -> Footprint:
    """Memory and work of one run; extents that the graph leaves open are `batch`.

    Not `strict`: results that cannot be followed are left out, for graphs with operators without
    a rule.

    Raises:
        BundleError: an operator does not fit its inputs, or cannot be followed.
    """
    scope: dict[str, Value | None] = {}
    for name, declared in graph.inputs.items():
        if name in graph.constants:
            continue
        if declared.shape is None:
            if strict:
                raise BundleError(f"graph: the shape of input {name!r} is not declared")
            scope[name] = None
            continue
        shape = tuple(batch if extent is None else extent for extent in declared.shape)
        scope[name] = Value(declared.elem_type, shape)
    held = [*scope.values(), *(Value(*tensor) for tensor in graph.constants.values())]
    walk = _Walk(rules, strict)
    _, peak = walk.run(graph, scope, 1)
    return Footprint(peak, walk.work, walk.operations, sum(map(size_bytes, held)))


class _Walk:
    """One interpretation of a graph and the bodies in it."""

    def __init__(self, rules: Mapping[str, Rule], strict: bool) -> None:
        self._rules, self._strict = rules, strict
        self.work = self.operations = 0

    def run(
        self, graph: Graph, outer: Mapping[str, Value | None], times: int
    ) -> tuple[list[Value | None], int]:
        """Values of the outputs, and the peak of memory; the graph runs `times` times."""
        scope = dict(outer)
        for name, tensor in graph.constants.items():
            scope[name] = Value(*tensor, constant=True)
        last_use = {name: at for at, node in enumerate(graph.nodes) for name in _reads(node)}
        last_use |= dict.fromkeys(graph.outputs, len(graph.nodes))
        ends: dict[int, int] = {}
        live = peak = 0
        made = set(graph.constants)
        for at, node in enumerate(graph.nodes):
            made_here, inner = self._apply(node, scope, times)
            for name, value in zip(node.outputs, made_here, strict=True):
                if name in made:
                    raise BundleError(f"{node.spot}: {name!r} is there twice")
                if name:
                    made.add(name)
                    scope[name] = value
                size = size_bytes(value)
                live += size
                self.work += size * times
                end = last_use.get(name, at)
                ends[end] = ends.get(end, 0) + size
            peak = max(peak, live + inner)
            live -= ends.pop(at, 0)
            if self.work > WORK_BYTES_MAX:
                raise BundleError(f"{node.spot}: so far {self.work:,} bytes are to be computed")
        missing = [name for name in graph.outputs if name not in scope]
        if missing:
            raise BundleError(f"graph: nothing makes the output {missing[0]!r}")
        return [scope[name] for name in graph.outputs], peak

    def _apply(
        self, node: Node, scope: Mapping[str, Value | None], times: int
    ) -> tuple[list[Value | None], int]:
        missing = [name for name in node.inputs if name and name not in scope]
        if missing:
            raise BundleError(f"{node.spot}: nothing before it makes its input {missing[0]!r}")
        call = Call(node, [scope[name] if name else None for name in node.inputs])
        unknown = any(name and scope[name] is None for name in node.inputs)
        rule = self._rules.get(node.op_type) if not node.domain else None
        if unknown or (rule is None and node.op_type != "Scan"):
            if self._strict:
                raise BundleError(f"{node.spot}: the shape of its result cannot be followed")
            return [None] * len(node.outputs), 0
        try:
            if rule is None:
                return self._scan(call, scope, times)
            check_divisor(call)
            check_empty(call)
            shapes = rule(call)
            scratch = sum(math.prod(shape) for shape in shapes if isinstance(shape, Scratch))
            self.operations += times * operations(call, shapes)
            with np.errstate(all="ignore"):
                return list(results(call, shapes)), 4 * scratch
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as exc:
            if self._strict:
                raise BundleError(f"{node.spot}: {exc}") from exc
            return [None] * len(node.outputs), 0

    def _scan(
        self, call: Call, scope: Mapping[str, Value | None], times: int
    ) -> tuple[list[Value | None], int]:
        """Once through the body, with one slice of every input that is scanned."""
        body = call.node.attributes["body"]
        count = call.integer("num_scan_inputs", 0)
        states = len(call.inputs) - count
        if not isinstance(body, Graph) or count < 1 or states < 0:
            raise ValueError("a Scan needs a body and inputs to scan")
        axes = call.integers("scan_input_axes", (0,) * count)
        given = [call.value(index)._replace(array=None) for index in range(states)]
        lengths = set()
        for index, axis in zip(range(states, len(call.inputs)), axes, strict=True):
            shape = list(call.shape(index))
            lengths.add(shape.pop(axis))
            given.append(Value(call.value(index).elem_type, tuple(shape)))
        (length,) = lengths
        inner_scope = {**scope, **dict(zip(body.inputs, given, strict=True))}
        times *= max(1, length)
        self.operations += times * NODE_OPERATIONS  # a body without nodes takes time, too
        last, peak = self.run(body, inner_scope, times)
        values: list[Value | None] = []
        places = call.integers("scan_output_axes", (0,) * (len(last) - states))
        for index, value in enumerate(last[: len(call.node.outputs)]):
            if value is None or index < states:
                if value is not None and value.shape != given[index].shape:
                    raise ValueError(f"a state of shape {given[index].shape} becomes {value.shape}")
                values.append(value and value._replace(array=None))
                continue
            axis, rank = places[index - states], len(value.shape) + 1
            axis = axis + rank if axis < 0 else axis
            stacked = (*value.shape[:axis], length, *value.shape[axis:])
            values.append(Value(value.elem_type, stacked))
        return values, peak


def size_bytes(value: Value | None) -> int:
    """Memory of one tensor; 0 if it is not known."""
    if value is None:
        return 0
    return math.prod(value.shape) * _ELEMENT_BYTES.get(value.elem_type, 8)


def _reads(node: Node) -> set[str]:
    """Names that the node reads, those that its body reads from outside among them."""
    names = set(node.inputs)
    for attribute in node.attributes.values():
        if isinstance(attribute, Graph):
            names.update(attribute.outputs, *(_reads(inner) for inner in attribute.nodes))
    return names
