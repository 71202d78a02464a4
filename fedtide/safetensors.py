"""A model in a file: safetensors with exactly one float32 tensor, `vector`, and nothing else.

The format is eight bytes of header length, a header in JSON, and the values in little-endian
order (https://github.com/huggingface/safetensors). This much of it needs no package.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from fedtide import limits
from fedtide.bundle import Bundle
from fedtide.errors import BundleError
from fedtide.vectors import Vector

_LENGTH_BYTES = 8
_HEADER_BYTES_MAX = 4096


class _Tensor(Struct, forbid_unknown_fields=True):
    dtype: Literal["F32"]
    shape: tuple[Annotated[int, Meta(ge=1, le=limits.ELEMENTS_MAX)]]
    data_offsets: tuple[int, int]


class _Header(Struct, forbid_unknown_fields=True):
    vector: _Tensor


def encode_safetensors(vector: Vector) -> bytes:
    """The file's content, the same bytes that the safetensors package writes."""
    tensor = _Tensor("F32", (len(vector),), (0, 4 * len(vector)))
    header = msgspec.json.encode(_Header(tensor))
    header += b" " * (-len(header) % 8)  # so that the values are aligned
    length = len(header).to_bytes(_LENGTH_BYTES, "little")
    return length + header + vector.astype("<f4").tobytes()


def decode_safetensors(raw: bytes) -> Vector:
    """float32[n]. Values may be infinite: a mask that does not travel often is.

    Raises:
        ValueError: anything but such a file; the message says what.
    """
    length = int.from_bytes(raw[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if length > _HEADER_BYTES_MAX or end > len(raw):
        raise ValueError(f"the header would have {length:,} of {len(raw):,} bytes")
    try:
        tensor = msgspec.json.decode(raw[_LENGTH_BYTES:end], type=_Header).vector
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"the header is not that of one float32 tensor 'vector': {exc}") from exc
    expected = 4 * tensor.shape[0]
    if tensor.data_offsets != (0, expected) or len(raw) - end != expected:
        raise ValueError(
            f"{len(raw) - end:,} bytes at {tensor.data_offsets}, expected {expected:,} at the start"
        )
    return np.frombuffer(raw, "<f4", offset=end).astype(np.float32)


def read_initial_model(bundle: Bundle) -> Vector:
    """The whole flat vector, float32[elements_count].

    Raises:
        BundleError: the file is missing, damaged, or no such vector.
    """
    manifest = bundle.manifest
    try:
        vector = decode_safetensors(bundle.read(manifest.initial_model))
    except ValueError as exc:
        raise BundleError(f"the initial model {manifest.initial_model!r}: {exc}") from exc
    if len(vector) != manifest.elements_count:
        raise BundleError(
            f"the initial model has {len(vector):,} values, "
            f"the manifest {manifest.elements_count:,}"
        )
    return vector
