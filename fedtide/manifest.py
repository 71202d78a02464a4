"""`manifest.json`: everything a runtime must know about a bundle before it opens another file.

The flat float32 vector in manifest order is the one currency of the system: both runtimes, the
wire, checkpoints and strategies speak it. Here its layout is defined, in five parts:

    shared statistics | shared parameters | local parameters | local statistics | frozen

so that what travels and is averaged (`shared_count`) is a prefix, what an optimizer changes
(`trained`) is one slice, and what stays on a device is the rest.

Invariants, checked by `parse_manifest`: offsets are contiguous from 0 in listed order; the parts
come in the order above; names are unique; every file that is named is listed with size and
SHA-256; sizes are within `fedtide.limits`.
"""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from fedtide import limits
from fedtide.errors import BundleError

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
INPUT_PREFIX = "tensor."
"""A graph's input for a tensor is this and the tensor's name (docs/bundle.md)."""
BASE_PREFIX = "base."
"""The training step's input for what a parameter's scaled gradient is added to."""
OUTPUT_PREFIX = "new."
"""The training step's output for a parameter or statistic after the step."""
WEIGHT_SUFFIX = ".weight"
"""The evaluation graph's output for the weight of a measure, beside that for its sum."""

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Dimension = Annotated[int, Meta(ge=1, le=limits.ELEMENTS_MAX)]
Shape = Annotated[tuple[Dimension, ...], Meta(max_length=8)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Kind = Literal["parameter", "statistic", "frozen"]
"""A parameter follows its gradient; a statistic (running mean and variance of a batch
normalisation) is recomputed by each step; what is frozen never changes."""
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]


class Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """One slice of the flat vector, in float32: `vector[offset : offset + prod(shape)]`."""

    name: Annotated[str, Meta(min_length=1, max_length=512)]
    shape: Shape
    offset: Count
    kind: Kind
    shared: bool
    """Whether it travels and is averaged; what is not stays on each device (FedBN), or is
    frozen."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Array(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a batch holds for each example: shape without the batch dimension, and dtype."""

    shape: Shape
    dtype: Literal["float32", "int64"]
    below: Dimension | None = None
    """Integers are in [0, below): an embedding has that many rows. None: the export could not
    tell. For inputs only: labels have `Manifest.classes`."""


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
    optimizer: str
    checkpoint: str
    order: tuple[str, ...]
    statistics: tuple[str, ...]
    """Statistics in the order of the training graph's outputs after loss and weight."""


class Estimates(Struct, frozen=True, forbid_unknown_fields=True):
    """What one step of plain SGD costs, counted when the bundle was exported (docs/bundle.md)."""

    flops_per_example: Count
    """Floating-point operations of matrix products and convolutions, forward and backward."""
    memory_fixed_bytes: Count
    """With `memory_per_example_bytes` times the batch: the most that is alive at once besides
    the model's vectors and the runtime's own code."""
    memory_per_example_bytes: Count


class Runtimes(Struct, frozen=True, forbid_unknown_fields=True):
    """The runtimes a bundle offers. The portable one always exists."""

    portable: PortableRuntime
    ort_training: OrtTrainingRuntime | None = None
    ort_training_absent_because: str | None = None


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `manifest.json`; its own SHA-256 is the bundle's identity."""

    format_version: Literal[2]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    tensors: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=limits.PARAMETERS_MAX)]
    inputs: Array
    labels: Array
    classes: Annotated[int, Meta(ge=2)] | None
    """Number of classes of a classifier; labels are in [0, classes). None for regression."""
    ignored_label: int | None
    """A label outside the classes that stands for "no label here"."""
    loss: Annotated[str, Meta(min_length=1, max_length=128)]
    """Name of the loss, for people."""
    metrics: Annotated[tuple[Name, ...], Meta(max_length=32)]
    """Measures that the evaluation graph gives beside "loss"; "accuracy" for a classifier."""
    optimizers: Annotated[tuple[Literal["sgd", "adamw"], ...], Meta(min_length=1)]
    additive: bool
    """The gradient of a batch is the sum of those of its parts, so that it can be accumulated
    exactly; not so with batch normalisation, where examples of a batch see each other."""
    random: bool
    """The training step draws random numbers (dropout) and has an input `seed`."""
    opset: Annotated[int, Meta(ge=13, le=21)]
    runtimes: Runtimes
    initial_model: str
    """Path of the initial model: safetensors, one float32 tensor `vector`."""
    rest: str | None
    """Path of the initial values that do not travel, `vector[shared_count:]`, as little-endian
    float32; None if there are none. A device needs it."""
    inference: str
    """Path of the graph for deployment; its initializers are the initial model's."""
    files: dict[str, File]
    verification: str | None = None
    """Path of what PyTorch computed, for `fedtide verify` (.npz); no device needs it."""
    estimates: Estimates | None = None

    @property
    def elements_count(self) -> int:
        """Length of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def shared_count(self) -> int:
        """Length of its prefix that travels and is averaged."""
        return sum(tensor.size for tensor in self.tensors if tensor.shared)

    @property
    def shared_bytes(self) -> int:
        """Size of that prefix as float32."""
        return 4 * self.shared_count

    @property
    def trained(self) -> slice:
        """The part of the flat vector that an optimizer changes: all parameters."""
        sizes = [tensor.size for tensor in self.tensors if tensor.kind == "parameter"]
        start = sum(t.size for t in self.tensors if t.kind == "statistic" and t.shared)
        return slice(start, start + sum(sizes))

    @property
    def local(self) -> slice:
        """The part that each device keeps for itself from round to round."""
        sizes = [t.size for t in self.tensors if not t.shared and t.kind != "frozen"]
        return slice(self.shared_count, self.shared_count + sum(sizes))


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
    parts = [part_of(tensor.kind, tensor.shared) for tensor in manifest.tensors]
    if parts != sorted(parts):
        raise BundleError("the tensors of the manifest are not in the order of their parts")
    if manifest.inputs.below is not None and manifest.inputs.dtype != "int64":
        raise BundleError("`inputs.below` in the manifest is for int64 only")
    if manifest.labels.below is not None:
        raise BundleError("`below` in the manifest is for inputs only; labels have `classes`")
    if not any(tensor.kind == "parameter" for tensor in manifest.tensors):
        raise BundleError("the manifest has no parameter to train")
    if (manifest.rest is None) != (manifest.shared_count == manifest.elements_count):
        raise BundleError("the manifest must name `rest` if some tensors do not travel")
    ort = manifest.runtimes.ort_training
    if ort is not None and sorted(ort.order) != sorted(names):
        raise BundleError("runtimes.ort_training.order does not list the manifest's tensors")
    if ort is not None and sorted(ort.statistics) != sorted(
        tensor.name for tensor in manifest.tensors if tensor.kind == "statistic"
    ):
        raise BundleError("runtimes.ort_training.statistics does not list the statistics")


_PARTS = (
    ("statistic", True),
    ("parameter", True),
    ("parameter", False),
    ("statistic", False),
    ("frozen", False),
)


def part_of(kind: Kind, shared: bool) -> int:
    """Index of the part of the flat vector that holds such a tensor.

    Raises:
        BundleError: a frozen tensor that travels.
    """
    if (kind, shared) not in _PARTS:
        raise BundleError(f"a {kind} tensor cannot be shared")
    return _PARTS.index((kind, shared))


def _check_files(manifest: Manifest) -> None:
    named = [*device_files(manifest), manifest.initial_model, manifest.inference]
    if manifest.verification is not None:
        named.append(manifest.verification)
    for path in named:
        if path not in manifest.files:
            raise BundleError(f"the manifest names {path!r} but does not list it under files")
    if manifest.rest is not None:
        size = 4 * (manifest.elements_count - manifest.shared_count)
        if manifest.files[manifest.rest].size_bytes != size:
            raise BundleError(f"{manifest.rest!r} should have {size:,} bytes")
    for path in manifest.files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
            raise BundleError(f"{path!r} is not a plain path inside the bundle")


def device_files(manifest: Manifest, runtime: str | None = None) -> tuple[str, ...]:
    """Paths that a device needs for `runtime` ("portable", "ort_training"), or for all of them."""
    portable, ort = manifest.runtimes.portable, manifest.runtimes.ort_training
    paths = [portable.evaluate]  # the same for every runtime
    if runtime in (None, "portable"):
        paths.append(portable.train)
    if runtime in (None, "ort_training") and ort is not None:
        paths += [ort.train, ort.optimizer, ort.checkpoint]
    if manifest.rest is not None:
        paths.append(manifest.rest)
    return tuple(paths)
