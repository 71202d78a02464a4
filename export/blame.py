"""Which part of the user's model an operator comes from."""

from __future__ import annotations

import torch

from export.graphs import UnsupportedOperatorError
from export.inspection import Model, module_label
from export.quiet import quiet
from export.recording import Recorder
from fedtide.errors import ExportError


def explain(model: Model, failure: UnsupportedOperatorError) -> ExportError:
    """The error for a user: the operator, the part of the model, and what to do."""
    recorder = Recorder(model.module)
    x, _ = model.example_batch(2)
    try:
        with quiet(), torch.no_grad(), recorder:
            model.module(x)
    finally:
        recorder.close()
    forward = _forward_name(failure.operator, recorder.places)
    place = recorder.places.get(forward) if forward else None
    part = "the model" if place is None else module_label(model.module, place)
    return ExportError(
        f"{part} cannot be exported: operator aten.{failure}",
        hint="replace that part by linear, convolution, max-pool, ReLU, flatten or other "
        "layers that the export supports (docs/bundle.md)",
    )


def _forward_name(operator: str, places: dict[str, str]) -> str | None:
    """`hardswish_backward` -> `hardswish`: the forward operator that was recorded."""
    stem = operator.removesuffix("_backward").strip("_")
    for name in (operator, operator.removesuffix("_backward")):
        if name in places:
            return name
    similar = [name for name in places if stem in name or name.strip("_") in stem]
    return max(similar, key=len, default=None)
