"""ONNX files by hand, byte by byte: a device has no onnx, and onnx would not write all of them."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while True:
        out.append((value & 0x7F) | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def number(tag: int, value: int) -> bytes:
    return varint(tag << 3) + varint(value)


def block(tag: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(tag << 3 | 2) + varint(len(content)) + content


def node(
    op_type: str, inputs: str = "x", output: str = "y", domain: str = "", more: bytes = b""
) -> bytes:
    names = b"".join(block(1, name) for name in inputs.split())
    return (
        names + block(2, output) + block(4, op_type) + (block(7, domain) if domain else b"") + more
    )


def value(name: str, elem_type: int = 1, extents: tuple[int, ...] = (1,)) -> bytes:
    shape = b"".join(block(1, number(1, extent)) for extent in extents)
    return block(1, name) + block(2, block(1, number(1, elem_type) + block(2, shape)))


def int64_array(name: str, extents: Sequence[int], *values: int) -> bytes:
    raw = b"".join(v.to_bytes(8, "little", signed=True) for v in values)
    shape = b"".join(number(1, extent) for extent in extents)
    return shape + number(2, 7) + block(8, name) + block(9, raw)


def int64_tensor(name: str, *values: int) -> bytes:
    return int64_array(name, [len(values)], *values)


def model(graph: bytes, more: bytes = b"", opset: int = 18) -> bytes:
    return number(1, 8) + block(7, graph) + block(8, number(2, opset)) + more


def graph(*nodes: bytes, more: bytes = b"") -> bytes:
    content = b"".join(block(1, item) for item in nodes) + block(2, "g")
    return content + block(11, value("x")) + block(12, value("y")) + more


_TYPES = {3: 2, 4: 3, 5: 4, 6: 5, 8: 7, 10: 9, 11: 10, 22: 11, 23: 12}
"""AttributeProto.type by the field that holds the content."""


def attribute(tag: int, content: bytes, name: str = "value") -> bytes:
    return block(5, block(1, name) + block(tag, content) + number(20, _TYPES[tag]))


def integer(name: str, content: int) -> bytes:
    return block(5, block(1, name) + number(3, content) + number(20, 2))


def integers(name: str, *contents: int) -> bytes:
    return attribute(8, b"".join(map(varint, contents)), name)


def string(name: str, content: str) -> bytes:
    return attribute(4, content.encode(), name)


def scan_node(body: bytes, inputs: str = "x", output: str = "y") -> bytes:
    return node(
        "Scan", inputs, output, more=attribute(6, body, "body") + integer("num_scan_inputs", 1)
    )


def float_tensor(name: str, *extents: int, content: float = 0.5) -> bytes:
    raw = struct.pack("<f", content) * math.prod(extents)
    shape = b"".join(number(1, extent) for extent in extents)
    return shape + number(2, 1) + block(8, name) + block(9, raw)


def scalar(name: str, content: int) -> bytes:
    return int64_array(name, [], content)


def result(name: str, elem_type: int = 1) -> bytes:
    """An output whose shape is not declared."""
    return block(1, name) + block(2, block(1, number(1, elem_type)))


def chain(
    nodes: Iterable[bytes],
    constants: Iterable[bytes] = (),
    inputs: Iterable[bytes] = (),
    outputs: Sequence[bytes] = (result("y"),),
    opset: int = 18,
) -> bytes:
    """A model of these parts."""
    content = b"".join(block(1, item) for item in nodes) + block(2, "g")
    content += b"".join(block(5, item) for item in constants)
    content += b"".join(block(11, item) for item in inputs)
    return model(content + b"".join(block(12, item) for item in outputs), opset=opset)


EXTERNAL = number(1, 1) + number(2, 1) + block(8, "w") + number(14, 1)
EXTERNAL += block(13, block(1, "location") + block(2, "../../etc/shadow"))
