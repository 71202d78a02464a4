"""Inputs and outputs of a bundle's graphs, compared with the manifest before anything is run.

onnxruntime takes a graph's word for its shapes; so this is where a graph that would read or write
anything but what the manifest says is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedtide.errors import BundleError
from fedtide.manifest import (
    BASE_PREFIX,
    INPUT_PREFIX,
    OUTPUT_PREFIX,
    WEIGHT_SUFFIX,
    Array,
    Manifest,
    Tensor,
)

_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


class Port(NamedTuple):
    """One input or output; None stands for the batch, which has any size."""

    dtype: str
    shape: tuple[int | None, ...] = ()


_SCALAR = Port("float32")


def check_train_ports(session: Any, manifest: Manifest) -> None:
    """Of the portable training step (docs/bundle.md).

    Raises:
        BundleError: one is missing, unknown, or has another shape or dtype.
    """
    parameters = [tensor for tensor in manifest.tensors if tensor.kind == "parameter"]
    changing = [tensor for tensor in manifest.tensors if tensor.kind != "frozen"]
    inputs = {
        **_data_ports(manifest),
        "scale": _SCALAR,
        "denominator": _SCALAR,
        **_tensor_ports(INPUT_PREFIX, manifest.tensors),
        **_tensor_ports(BASE_PREFIX, parameters),
    }
    if manifest.random:
        inputs["seed"] = Port("int64")
    outputs = {"loss": _SCALAR, "weight": _SCALAR, **_tensor_ports(OUTPUT_PREFIX, changing)}
    _check("training", "input", session.get_inputs(), inputs)
    _check("training", "output", session.get_outputs(), outputs)


def check_evaluation_ports(session: Any, manifest: Manifest) -> None:
    """Of the evaluation graph.

    Raises:
        BundleError: one is missing, unknown, or has another shape or dtype.
    """
    inputs = {**_data_ports(manifest), **_tensor_ports(INPUT_PREFIX, manifest.tensors)}
    outputs = dict.fromkeys(measure_outputs(manifest), _SCALAR)
    _check("evaluation", "input", session.get_inputs(), inputs)
    _check("evaluation", "output", session.get_outputs(), outputs)


def measure_outputs(manifest: Manifest) -> tuple[str, ...]:
    """Outputs of the evaluation graph: sum and weight of each measure, one after the other."""
    names = ("loss", *manifest.metrics)
    return tuple(name + suffix for name in names for suffix in ("", WEIGHT_SUFFIX))


def _data_ports(manifest: Manifest) -> dict[str, Port]:
    return {"x": _batch_port(manifest.inputs), "y": _batch_port(manifest.labels)}


def _batch_port(array: Array) -> Port:
    return Port(array.dtype, (None, *array.shape))


def _tensor_ports(prefix: str, tensors: Iterable[Tensor]) -> dict[str, Port]:
    return {prefix + tensor.name: Port("float32", tensor.shape) for tensor in tensors}


def _check(graph: str, what: str, nodes: Iterable[Any], expected: Mapping[str, Port]) -> None:
    actual = {node.name: node for node in nodes}
    odd = sorted(set(expected).symmetric_difference(actual))
    if odd:
        raise BundleError(f"the {graph} graph and the manifest differ in {what} {odd[0]!r}")
    for name, (dtype, shape) in expected.items():
        node = actual[name]
        # A dimension of any size is a name or None in onnxruntime.
        found = tuple(size if isinstance(size, int) else None for size in node.shape)
        if found != shape or node.type != _TYPES[dtype]:
            raise BundleError(
                f"{what} {name!r} of the {graph} graph is {node.type} of shape {node.shape}, "
                f"the manifest says {dtype} of shape {['batch' if n is None else n for n in shape]}"
            )
