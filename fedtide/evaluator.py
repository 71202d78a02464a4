"""The bundle's evaluation graph: every runtime of the device uses it, and the coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedtide.bundle import Bundle
from fedtide.errors import GraphFailedError
from fedtide.manifest import INPUT_PREFIX, WEIGHT_SUFFIX, Manifest
from fedtide.measures import Measure, Metrics
from fedtide.ports import check_evaluation_ports, measure_outputs
from fedtide.runtime import import_onnxruntime, load_session
from fedtide.vectors import Vector, split_vector

AnyArray = NDArray[np.generic]
OrtValues = Mapping[str, Any]
"""onnxruntime's values by tensor name."""


class Evaluator:
    """One session; the model is given with each call."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Open the evaluation graph of `bundle`.

        Raises:
            BundleError: it is damaged, refused, or does not fit the manifest.
        """
        self._manifest = manifest = bundle.manifest
        raw = bundle.read(manifest.runtimes.portable.evaluate)
        self._session = load_session(raw, threads=threads)
        check_evaluation_ports(self._session, manifest)
        self._outputs = {name: np.zeros((), np.float32) for name in measure_outputs(manifest)}

    def evaluate(self, model: OrtValues, x: AnyArray, y: AnyArray) -> Metrics:
        """Measures of `model` on one batch that fits the manifest.

        Raises:
            GraphFailedError: onnxruntime failed.
        """
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("x", shared_value(x))
        binding.bind_ortvalue_input("y", shared_value(y))
        for name, value in model.items():
            binding.bind_ortvalue_input(INPUT_PREFIX + name, value)
        for name, array in self._outputs.items():
            binding.bind_ortvalue_output(name, shared_value(array))
        run_bound(self._session, binding)
        return Metrics(
            len(x),
            {
                name: Measure(
                    float(self._outputs[name]), float(self._outputs[name + WEIGHT_SUFFIX])
                )
                for name in ("loss", *self._manifest.metrics)
            },
        )


def vector_values(vector: Vector, manifest: Manifest) -> dict[str, Any]:
    """The tensors of `vector`, float32[elements_count], without a copy."""
    return {name: shared_value(view) for name, view in split_vector(vector, manifest).items()}


def shared_value(array: AnyArray) -> Any:
    """An OrtValue over the memory of `array`, which it keeps alive."""
    return import_onnxruntime().OrtValue.ortvalue_from_numpy(array)


def run_bound(session: Any, binding: Any) -> None:
    """Run a session whose inputs and outputs are bound.

    Raises:
        GraphFailedError: onnxruntime failed.
    """
    try:
        session.run_with_iobinding(binding)
    except Exception as exc:  # its errors share no base class
        raise GraphFailedError(f"onnxruntime failed in a graph of the bundle: {exc}") from exc
