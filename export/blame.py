"""Which part of the user's model an operator comes from."""

from __future__ import annotations

from collections.abc import Iterator

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
        with quiet(), recorder:
            output = model.module(x)
            torch.autograd.grad(output.sum(), list(_trained(model)), allow_unused=True)
    finally:
        recorder.close()
    name = _recorded_name(failure.operator, recorder.places)
    place = recorder.places.get(name) if name else None
    part = "the model" if place is None else module_label(model.module, place)
    return ExportError(
        f"{part} cannot be exported: operator aten.{failure}",
        hint="replace that part by other layers (docs/bundle.md says what can be exported), or "
        "write it in simpler operations",
    )


def _trained(model: Model) -> Iterator[torch.Tensor]:
    return (value for value in model.module.parameters() if value.requires_grad)


def _recorded_name(operator: str, places: dict[str, str]) -> str | None:
    """The operator as it was recorded; else a like one, as `hardswish` for its backward form."""
    stem = operator.removesuffix("_backward").strip("_")
    for name in (operator, operator.removesuffix("_backward")):
        if name in places:
            return name
    similar = [name for name in places if stem in name or name.strip("_") in stem]
    return max(similar, key=len, default=None)
