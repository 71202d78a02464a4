"""A bounded reader of the protobuf wire format: just enough to look into an ONNX file.

A device has no `onnx` package and must look at a model before onnxruntime does. The reader is
stricter than protobuf where two parsers could disagree: groups, over-long tags, and (in
`fields`) a singular field that appears twice or with another wire type are errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fedtide.errors import BundleError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """One field of a message. `number` is a varint's value, else 0; `view` the raw content."""

    tag: int
    wire_type: int
    number: int
    view: memoryview


def fields(message: memoryview, where: str, singular: frozenset[int]) -> Iterator[Field]:
    """The fields of one message, in order; nothing is copied.

    `singular` are tags that may appear once only: protobuf would merge the later one into the
    earlier one, and what was checked would not be what is run.

    Raises:
        BundleError: truncated, malformed, or a singular field appears again.
    """
    at, seen = 0, set[int]()
    while at < len(message):
        key, at = varint(message, at, where, 5)
        tag, wire_type = key >> 3, key & 7
        if not 0 < tag < 1 << 29:
            raise BundleError(f"{where}: protobuf tag {tag} is impossible")
        number, start = 0, at
        if wire_type == VARINT:
            number, at = varint(message, at, where)
        elif wire_type == BYTES:
            size, start = varint(message, at, where)
            at = start + size
        elif wire_type in _FIXED_BYTES:
            at += _FIXED_BYTES[wire_type]
        else:
            raise BundleError(f"{where}: protobuf wire type {wire_type} is not used by ONNX")
        if at > len(message):
            raise BundleError(
                f"{where}: truncated, field {tag} ends {at - len(message)} bytes late"
            )
        if tag in singular:
            if tag in seen:
                raise BundleError(f"{where}: field {tag} appears twice")
            seen.add(tag)
        yield Field(tag, wire_type, number, message[start:at])


def varint(message: memoryview, at: int, where: str, bytes_max: int = 10) -> tuple[int, int]:
    """An unsigned varint of at most `bytes_max` bytes at `at`, and the position after it."""
    value = 0
    for index in range(bytes_max):
        if at + index >= len(message):
            raise BundleError(f"{where}: truncated inside a number")
        byte = message[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & (1 << 64) - 1, at + index + 1
    raise BundleError(f"{where}: a number has more than {bytes_max} bytes")


def int64s(field: Field, where: str, count_max: int) -> list[int]:
    """Signed 64-bit integers of a repeated field, packed or not; at most `count_max` of them."""
    if field.wire_type == VARINT:
        return [_signed(field.number)]
    if field.wire_type != BYTES:
        raise BundleError(f"{where}: field {field.tag} holds no integers")
    values, at = list[int](), 0
    while at < len(field.view):
        if len(values) == count_max:
            raise BundleError(f"{where}: field {field.tag} has more than {count_max} integers")
        value, at = varint(field.view, at, where)
        values.append(_signed(value))
    return values


def text(field: Field, where: str) -> str:
    """The content of a string field.

    Raises:
        BundleError: not a string field, or not UTF-8.
    """
    try:
        return str(nested(field, where), "utf-8")
    except UnicodeDecodeError as exc:
        raise BundleError(f"{where}: field {field.tag} is not UTF-8 text") from exc


def nested(field: Field, where: str) -> memoryview:
    """The content of a string, bytes or message field.

    Raises:
        BundleError: the field has another wire type.
    """
    if field.wire_type != BYTES:
        raise BundleError(f"{where}: field {field.tag} has wire type {field.wire_type}, expected 2")
    return field.view


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
