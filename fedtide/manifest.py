"""`manifest.json`: everything a runtime must know about a bundle before it opens another file.

The flat float32 vector in manifest order is the one currency of the system: both runtimes, the
wire, checkpoints and strategies speak it. Here its layout is defined.

Invariants, checked by `parse_manifest`: offsets are contiguous from 0 in listed order; names are
unique; every file that a runtime names is listed with size and SHA-256; sizes are within
`fedtide.limits`.
"""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from fedtide import limits
from fedtide.errors import BundleError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
INPUT_PREFIX = "tensor."
"""A graph's input for a tensor is this and the tensor's name (docs/bundle.md)."""
OUTPUT_PREFIX = "new."
"""The training step's output for the tensor after the step."""

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Dimension = Annotated[int, Meta(ge=1, le=limits.ELEMENTS_MAX)]
Shape = Annotated[tuple[Dimension, ...], Meta(max_length=8)]
Count = Annotated[int, Meta(ge=0)]


class Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """One slice of the flat vector, in float32: `vector[offset : offset + prod(shape)]`."""

    name: Annotated[str, Meta(min_length=1, max_length=512)]
    shape: Shape
    offset: Count
    trainable: bool
    """False for buffers (such as running statistics) and frozen parameters."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Array(Struct, frozen=True, forbid_unknown_fields=True):
    """What a batch holds for each example: shape without the batch dimension, and dtype."""

    shape: Shape
    dtype: Literal["float32", "int64"]


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and digest of one file of the bundle."""

    size_bytes: Annotated[int, Meta(ge=1, le=limits.BLOB_BYTES_MAX)]
    sha256: Sha256


class PortableRuntime(Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of the portable training step and its evaluation graph (docs/bundle.md)."""

    train: str
    evaluate: str


class OrtTrainingRuntime(Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of the artifacts of `onnxruntime.training.artifacts.generate_artifacts`.

    `order` lists the manifest's tensor names in the order of onnxruntime's contiguous buffer,
    which is that of the training graph's parameter inputs, not the manifest's.
    """

    train: str
    evaluate: str
    optimizer: str
    checkpoint: str
    order: tuple[str, ...]


class Runtimes(Struct, frozen=True, forbid_unknown_fields=True):
    """The runtimes a bundle offers. The portable one always exists."""

    portable: PortableRuntime
    ort_training: OrtTrainingRuntime | None = None
    ort_training_absent_because: str | None = None


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `manifest.json`; its own SHA-256 is the bundle's identity."""

    format_version: Literal[1]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    tensors: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=limits.PARAMETERS_MAX)]
    inputs: Array
    labels: Array
    classes: Annotated[int, Meta(ge=2)] | None
    """Number of classes of a classifier; labels are in [0, classes). None for regression."""
    loss: Literal["cross_entropy", "mse"]
    optimizers: Annotated[tuple[Literal["sgd"], ...], Meta(min_length=1)]
    opset: Annotated[int, Meta(ge=13, le=21)]
    runtimes: Runtimes
    initial_model: str
    """Path of the initial model: safetensors, one float32 tensor `vector`."""
    inference: str
    """Path of the graph for deployment; its initializers are the initial model's."""
    files: dict[str, File]

    @property
    def elements_count(self) -> int:
        """Length of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def vector_bytes(self) -> int:
        """Size of the flat vector as float32."""
        return 4 * self.elements_count


def parse_manifest(raw: bytes) -> Manifest:
    """Decode and check `manifest.json`.

    Raises:
        BundleError: not JSON, unknown or missing fields, or an invariant above is broken.
    """
    if len(raw) > limits.MANIFEST_BYTES_MAX:
        raise BundleError(
            f"manifest.json has {len(raw):,} bytes, at most {limits.MANIFEST_BYTES_MAX:,} are read"
        )
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BundleError(
            f"manifest.json cannot be read: {exc}",
            hint=f"this version reads format_version {FORMAT_VERSION}; export the model again",
        ) from exc
    _check_layout(manifest)
    _check_files(manifest)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical bytes: those whose SHA-256 identifies the bundle."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)


def _check_layout(manifest: Manifest) -> None:
    expected_offset = 0
    for tensor in manifest.tensors:
        if tensor.offset != expected_offset:
            raise BundleError(
                f"tensor {tensor.name!r} has offset {tensor.offset}, expected {expected_offset}"
            )
        expected_offset += tensor.size
        if expected_offset > limits.ELEMENTS_MAX:
            raise BundleError(f"the model has more than {limits.ELEMENTS_MAX:,} values")
    names = [tensor.name for tensor in manifest.tensors]
    if len(set(names)) != len(names):
        raise BundleError("two tensors of the manifest have the same name")
    ort = manifest.runtimes.ort_training
    if ort is not None and sorted(ort.order) != sorted(names):
        raise BundleError("runtimes.ort_training.order does not list the manifest's tensors")
    if manifest.loss == "cross_entropy" and manifest.classes is None:
        raise BundleError("loss is cross_entropy, but the manifest has no number of classes")


def _check_files(manifest: Manifest) -> None:
    for path in (*runtime_files(manifest), manifest.initial_model, manifest.inference):
        if path not in manifest.files:
            raise BundleError(f"the manifest names {path!r} but does not list it under files")
    for path in manifest.files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
            raise BundleError(f"{path!r} is not a plain path inside the bundle")


def runtime_files(manifest: Manifest, runtime: str | None = None) -> tuple[str, ...]:
    """Paths that a device needs for `runtime` ("portable", "ort_training"), or for all of them."""
    paths: list[str] = []
    portable, ort = manifest.runtimes.portable, manifest.runtimes.ort_training
    if runtime in (None, "portable"):
        paths += [portable.train, portable.evaluate]
    if runtime in (None, "ort_training") and ort is not None:
        paths += [ort.train, ort.evaluate, ort.optimizer, ort.checkpoint]
    return tuple(paths)
