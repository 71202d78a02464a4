"""A node of an ONNX graph together with what goes into it: what the rules of `onnx_rules` see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedtide.onnx_graph import SMALL_ELEMENTS, Node, Tensor

Shape = tuple[int, ...]


class Scratch(Shape):
    """Besides the shapes of its results, a rule may give that of memory used meanwhile."""


class Value(NamedTuple):
    """A result: what is known of it before the graph runs."""

    elem_type: int
    shape: Shape
    array: Any = None
    """Its content, if it is small and follows from constants and shapes; a numpy array."""
    constant: bool = False
    """Its content follows from constants alone, not from an input's shape."""


class Call(NamedTuple):
    """A node and what goes into it, as rules see it."""

    node: Node
    inputs: Sequence[Value | None]

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """An input that must be there."""
        value = self.inputs[index]
        if value is None:
            raise ValueError(f"input {index} is missing")
        return value

    def shape(self, index: int = 0) -> Shape:
        """The shape of an input."""
        return self.value(index).shape

    def numbers(self, index: int) -> tuple[Any, ...]:
        """The content of an input, which must be known."""
        array = self.value(index).array
        if array is None:
            raise ValueError(f"the values of input {index} cannot be followed")
        return tuple(array.ravel().tolist())

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, int):
            raise TypeError(f"attribute {name} is no integer")
        return value

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute."""
        value = self.node.attributes.get(name, default)
        return tuple(int(item) for item in value)  # type: ignore[attr-defined]

    def string(self, name: str, default: str) -> str:
        """An attribute."""
        value = self.node.attributes.get(name)
        return value.decode() if isinstance(value, bytes) else default


def constant_of(call: Call) -> Value:
    """What a Constant node holds."""
    attributes = call.node.attributes
    if len(attributes) != 1:
        raise ValueError("a Constant has one attribute")
    ((name, content),) = attributes.items()
    if isinstance(content, Tensor):
        return Value(*content, constant=True)
    if name in ("value_int", "value_ints"):
        array: Any = np.array(content, np.int64)
    elif name in ("value_float", "value_floats"):
        array = np.array(content, np.float32)
    else:
        raise ValueError(f"attribute {name} is not accepted")
    elem_type = 7 if array.dtype == np.int64 else 1
    return Value(elem_type, array.shape, array if array.size <= SMALL_ELEMENTS else None, True)


def cut(extent: int, start: int, end: int, step: int) -> slice:
    """Python's slice for one of ONNX along an axis of `extent`.

    Raises:
        ValueError: one that goes back to an end that lies before its start.
    """
    if step < 0:
        if end > extent:
            raise ValueError("it goes back to an end that lies before it")
        start = max(start, -extent)
        return slice(start, None if end < -extent else end, step)
    return slice(start, end, step)


Rule = Callable[[Call], Sequence[Shape]]
"""Shapes of a node's results; ValueError and the like if its inputs do not fit."""
