"""Which part of the user's model an operator comes from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.graphs import UnsupportedOperatorError
from export.inspection import Model, module_label
from export.quiet import quiet
from fedtide.errors import ExportError


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the innermost module in whose forward pass each ATen operator first runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: dict[str, str] = {}
        self._stack = [""]
        self._handles: list[Any] = []
        for path, part in module.named_modules():
            self._handles += [
                part.register_forward_pre_hook(lambda *_, path=path: self._stack.append(path)),
                part.register_forward_hook(lambda *_: self._leave()),
            ]

    def _leave(self) -> None:
        self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.places.setdefault(name, self._stack[-1])
        return func(*args, **(kwargs or {}))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def explain(model: Model, failure: UnsupportedOperatorError) -> ExportError:
    """The error for a user: the operator, the part of the model, and what to do."""
    recorder = _Recorder(model.module)
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
