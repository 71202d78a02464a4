"""Encodings of the flat vector on the wire, named in its header and agreed between both sides.

f32: IEEE 754 binary32, little-endian. f16: binary16, little-endian; half the bytes, 11 bits of
precision, overflow beyond 65,504 is refused by the sender. More encodings come later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedtide.bundle import Bundle
from fedtide.limits import VALUE_ABS_MAX
from fedtide.manifest import Manifest
from fedtide.messages import Encoding

Vector = NDArray[np.float32]

ENCODINGS: dict[Encoding, np.dtype[np.generic]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}

_LARGEST: dict[Encoding, float] = {"f32": VALUE_ABS_MAX, "f16": float(np.finfo(np.float16).max)}


def check_vector(vector: Vector, manifest: Manifest) -> None:
    """Nothing, if `vector` is float32[elements_count].

    Raises:
        ValueError: another dtype or shape.
    """
    expected = (manifest.elements_count,)
    if vector.dtype != np.float32 or vector.shape != expected:
        raise ValueError(
            f"the model is a vector of float32{list(expected)}, "
            f"got {vector.dtype}{list(vector.shape)}"
        )


def whole_vector(shared: Vector, bundle: Bundle) -> Vector:
    """float32[elements_count]: what travels, and the bundle's initial values of what does not.

    Raises:
        BundleError: the file with the initial values is missing or damaged.
    """
    manifest = bundle.manifest
    if manifest.rest is None:
        return shared
    # Any value: a frozen mask may hold infinities. Its size is the manifest's, which was checked.
    rest = np.frombuffer(bundle.read(manifest.rest), "<f4").astype(np.float32)
    return np.concatenate([shared, rest])


def split_vector(vector: Vector, manifest: Manifest) -> dict[str, Vector]:
    """Views of `vector`, float32[elements_count], by tensor name, in the tensors' shapes."""
    return {
        tensor.name: vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
        for tensor in manifest.tensors
    }


def encoded_bytes(elements_count: int, encoding: Encoding) -> int:
    """Exact size of an encoded vector; the receiver knows it before the first byte arrives."""
    return elements_count * ENCODINGS[encoding].itemsize


def encode_vector(vector: Vector, encoding: Encoding) -> bytes:
    """Bytes of `vector`, float32[n]; `decode_vector` takes whatever this returns.

    Raises:
        OverflowError: a value is not finite, too large, or does not fit the encoding.
    """
    require_range(vector, encoding)
    return vector.astype(ENCODINGS[encoding]).tobytes()


def require_range(vector: Vector, encoding: Encoding) -> None:
    """Nothing, if `vector` can be encoded.

    Raises:
        OverflowError: a value is not finite, too large, or does not fit the encoding.
    """
    bound = _LARGEST[encoding]
    if not _within(vector, bound):
        raise OverflowError(
            f"the vector has values that are not within ±{bound:g}, the range of {encoding}"
        )


def decode_vector(content: bytes | memoryview, encoding: Encoding, elements_count: int) -> Vector:
    """float32[elements_count], every value within `limits.VALUE_ABS_MAX`.

    Raises:
        ValueError: wrong length, or a value that is not finite or too large; the message says
            which.
    """
    expected = encoded_bytes(elements_count, encoding)
    if len(content) != expected:
        raise ValueError(f"the vector has {len(content):,} bytes, expected {expected:,}")
    vector = np.frombuffer(content, dtype=ENCODINGS[encoding]).astype(np.float32)
    if not _within(vector, VALUE_ABS_MAX):
        first = int(np.argmin(np.abs(vector) <= VALUE_ABS_MAX))
        raise ValueError(f"value {first} of the vector is {vector[first]}")
    return vector


def _within(vector: Vector, bound: float) -> bool:
    """Whether every value is a number within ±bound. Two passes that make no copy."""
    # False for NaN, which both extremes pass on.
    return bool(vector.min(initial=0) >= -bound and vector.max(initial=0) <= bound)
