"""Reads an ONNX file into plain values: what a look before onnxruntime needs, and nothing large.

Whatever two parsers could read differently is refused, and so is what no bundle needs: tensors
whose data lie outside the file, sparse tensors, functions, training information. Contents of
large tensors are not copied, only counted.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedtide.errors import BundleError
from fedtide.protobuf_wire import BYTES, VARINT, Field, fields, int64s, nested, text

NODES_MAX = 100_000
SMALL_ELEMENTS = 64
"""A tensor of at most so many elements may be a shape: its content is read."""
_T = TypeVar("_T")
_DEPTH_MAX = 16
_RANK_MAX = 16
_LIST_MAX = 4096
_DTYPES = {1: "<f4", 6: "<i4", 7: "<i8", 9: "?", 11: "<f8"}
_CONTENT_TAGS = {1: 4, 6: 5, 7: 7, 9: 5, 11: 10}
"""Field of a tensor that holds its values one by one, by its element type."""
_ATTRIBUTE_TYPES = {2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8}
"""AttributeProto.type by the field that holds the content."""


class Tensor(NamedTuple):
    """A constant, or what is declared of an input."""

    elem_type: int
    """TensorProto.DataType."""
    shape: tuple[int, ...]
    array: NDArray[np.generic] | None = None
    """Its content, if it is small and of a common type."""


class Input(NamedTuple):
    """A declared input; an extent that the file leaves open is None."""

    elem_type: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Node:
    """One operation. `spot` says where it is, for people."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]
    spot: str


@dataclass(frozen=True)
class Graph:
    """A graph, or the body of a node."""

    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    nodes: tuple[Node, ...]


@dataclass
class Budget:
    """What is left of what one file may hold."""

    elements_max: int
    nodes: int = 0
    elements: int = 0
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)


def read_model(raw: bytes, budget: Budget) -> Graph:
    """The graph of an ONNX file; `budget` is charged with what it holds.

    Raises:
        BundleError: the file is damaged, holds what is never accepted, or more than the budget.
    """
    graph: Graph | None = None
    for item in fields(memoryview(raw), "model", frozenset({1, 7})):
        if item.tag == 7:
            graph = _read_graph(budget, nested(item, "model"), "graph", 0)
        elif item.tag in (20, 25):
            what = "training_info" if item.tag == 20 else "functions"
            raise BundleError(f"model: {what} are not accepted")
    if graph is None:
        raise BundleError(f"these {len(raw):,} bytes hold no ONNX graph")
    return graph


def _read_graph(budget: Budget, message: memoryview, where: str, depth: int) -> Graph:
    if depth > _DEPTH_MAX:
        raise BundleError(f"{where}: graphs are nested more than {_DEPTH_MAX} deep")
    inputs, constants = dict[str, Input](), dict[str, Tensor]()
    nodes, outputs = list[Node](), list[str]()
    for item in fields(message, where, frozenset()):
        if item.tag == 1:
            nodes.append(_read_node(budget, nested(item, where), where, depth))
        elif item.tag == 5:
            name, tensor = _read_tensor(budget, nested(item, where), f"{where}: initializer")
            _add(constants, name, tensor, where)
        elif item.tag == 11:
            _add(inputs, *_read_input(nested(item, where), where), where)
        elif item.tag == 12:
            outputs.append(_read_input(nested(item, where), where)[0])
        elif item.tag == 15:
            raise BundleError(f"{where}: sparse initializers are not accepted")
    return Graph(inputs, tuple(outputs), constants, tuple(nodes))


def _add(names: dict[str, _T], name: str, item: _T, where: str) -> None:
    if name in names:
        raise BundleError(f"{where}: {name!r} is there twice")
    names[name] = item


def _read_node(budget: Budget, message: memoryview, where: str, depth: int) -> Node:
    budget.nodes += 1
    if budget.nodes > NODES_MAX:
        raise BundleError(f"{where}: more than {NODES_MAX:,} nodes")
    strings: dict[int, str] = {3: "", 4: "", 7: ""}
    inputs, outputs = list[str](), list[str]()
    messages: list[memoryview] = []
    for item in fields(message, where, frozenset({3, 4, 7})):
        if item.tag == 1:
            inputs.append(text(item, where))
        elif item.tag == 2:
            outputs.append(text(item, where))
        elif item.tag in strings:
            strings[item.tag] = text(item, where)
        elif item.tag == 5:
            messages.append(nested(item, where))
    name, op_type = strings[3], strings[4]
    domain = "" if strings[7] == "ai.onnx" else strings[7]
    spot = f"{where}: node {name or budget.nodes!r} ({op_type})"
    budget.operators[domain, op_type] += 1
    attributes: dict[str, object] = {}
    for attribute in messages:
        _add(attributes, *_read_attribute(budget, attribute, spot, depth), spot)
    return Node(op_type, domain, tuple(inputs), tuple(outputs), attributes, spot)


def _read_attribute(
    budget: Budget, message: memoryview, where: str, depth: int
) -> tuple[str, object]:
    name, declared, tags = "", 0, set[int]()
    single: object = None
    numbers: list[float] = []
    for item in fields(message, where, frozenset({1, 2, 3, 4, 5, 6, 20})):
        if item.tag == 1:
            name = text(item, where)
        elif item.tag == 20:
            declared = item.number
        elif item.tag in _ATTRIBUTE_TYPES:
            tags.add(item.tag)
            if item.tag <= 6:
                single = _read_single(budget, item, where, depth)
            elif item.tag <= 8:
                numbers += _floats(item, where) if item.tag == 7 else int64s(item, where, _LIST_MAX)
        elif item.tag != 13:
            raise BundleError(f"{where}: attribute field {item.tag} is not accepted")
        if len(numbers) > _LIST_MAX:
            raise BundleError(f"{where}: attribute {name!r} has more than {_LIST_MAX} values")
    # A list may be empty; otherwise there is content, of the declared type alone.
    if {_ATTRIBUTE_TYPES[tag] for tag in tags} != {declared} and (
        tags or declared not in (6, 7, 8)
    ):
        raise BundleError(f"{where}: attribute {name!r} holds not what it declares")
    return name, tuple(numbers) if tags <= {7, 8, 9} else single


def _read_single(budget: Budget, item: Field, where: str, depth: int) -> object:
    if item.tag == 2:
        return _floats(item, where)[0]
    if item.tag == 3:
        return _int64(item, where)
    if item.tag == 4:
        return bytes(nested(item, where))
    if item.tag == 5:
        return _read_tensor(budget, nested(item, where), f"{where}: attribute")[1]
    return _read_graph(budget, nested(item, where), f"{where}: body", depth + 1)


def _int64(item: Field, where: str) -> int:
    values = int64s(item, where, 1)
    if not values:
        raise BundleError(f"{where}: field {item.tag} holds no integer")
    return values[0]


def _floats(item: Field, where: str) -> list[float]:
    if item.wire_type == VARINT or not item.view or len(item.view) % 4:
        raise BundleError(f"{where}: field {item.tag} holds no floats")
    return [value for (value,) in struct.iter_unpack("<f", item.view)]


def _read_input(message: memoryview, where: str) -> tuple[str, Input]:
    """Name and declaration; the shape of what is no tensor is None."""
    name, elem_type = "", 0
    shape: tuple[int | None, ...] | None = None
    parts: list[Field] = []
    for item in fields(message, where, frozenset({1, 2})):
        if item.tag == 1:
            name = text(item, where)
        elif item.tag == 2:
            for kind in fields(nested(item, where), where, frozenset({1})):
                if kind.tag == 1:
                    parts += fields(nested(kind, where), where, frozenset({1, 2}))
    for part in parts:
        if part.tag == 1:
            elem_type = part.number
        elif part.tag == 2:
            shape = tuple(_read_shape(nested(part, where), f"{where}: {name!r}"))
    return name, Input(elem_type, shape)


def _read_shape(message: memoryview, where: str) -> list[int | None]:
    shape: list[int | None] = []
    for item in fields(message, where, frozenset()):
        extent: int | None = None
        for part in fields(nested(item, where), where, frozenset({1, 2})):
            if part.tag == 1:
                extent = _int64(part, where)
        shape.append(extent)
        if len(shape) > _RANK_MAX or (extent is not None and extent < 0):
            raise BundleError(f"{where}: its shape {shape[:9]} is impossible")
    return shape


def _read_tensor(budget: Budget, message: memoryview, where: str) -> tuple[str, Tensor]:
    name, extents, elem_type = "", list[int](), 0
    raw: memoryview | None = None
    typed: list[Field] = []
    for item in fields(message, where, frozenset({2, 8, 9, 14})):
        if item.tag == 13 or (item.tag == 14 and item.number != 0):
            raise BundleError(
                f"{where} {name!r}: its data lie outside the file",
                hint="a bundle's graphs must hold all their data; export the model again",
            )
        if item.tag == 1:
            extents += int64s(item, where, _RANK_MAX)
        elif item.tag == 2:
            elem_type = item.number
        elif item.tag == 8:
            name = text(item, where)
        elif item.tag == 9:
            raw = nested(item, where)
        elif item.tag in (4, 5, 7, 10):
            typed.append(item)
    where = f"{where} {name!r}"
    if len(extents) > _RANK_MAX or any(extent < 0 for extent in extents):
        raise BundleError(f"{where}: its shape {extents[:9]} is impossible")
    elements = math.prod(extents)
    budget.elements += elements
    if budget.elements > budget.elements_max:
        raise BundleError(
            f"{where}: constants and initializers have {budget.elements:,} elements, "
            f"at most {budget.elements_max:,} are accepted"
        )
    array = None
    if elements <= SMALL_ELEMENTS and elem_type in _DTYPES:
        array = _content(elem_type, elements, raw, typed, where).reshape(extents)
    return name, Tensor(elem_type, tuple(extents), array)


def _content(
    elem_type: int, elements: int, raw: memoryview | None, typed: list[Field], where: str
) -> NDArray[np.generic]:
    dtype = np.dtype(_DTYPES[elem_type])
    if raw is not None and not typed:
        if len(raw) != elements * dtype.itemsize:
            raise BundleError(f"{where}: {len(raw):,} bytes do not hold {elements:,} elements")
        return np.frombuffer(raw, dtype)
    values: list[float] = []
    for item in typed:
        if raw is not None or item.tag != _CONTENT_TAGS[elem_type]:
            raise BundleError(f"{where}: its content is of another type")
        if item.tag in (5, 7):
            values += int64s(item, where, SMALL_ELEMENTS)
        elif item.wire_type == BYTES and len(item.view) % dtype.itemsize:
            raise BundleError(f"{where}: its content is damaged")
        else:
            values += np.frombuffer(item.view, dtype).tolist()
        if len(values) > elements:
            break
    if len(values) != elements:
        raise BundleError(f"{where}: its content has not {elements:,} elements")
    return np.array(values).astype(dtype)
