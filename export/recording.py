"""Which operators a forward pass runs, and in which part of the user's model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the innermost module in whose forward or backward pass each ATen operator first
    runs, and which of them are random."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: dict[str, str] = {}
        self.random: dict[str, str] = {}
        self._stack = [""]
        self._handles: list[Any] = []
        self._seen: set[Any] = set()
        for path, part in module.named_modules():
            self._handles += [
                part.register_forward_pre_hook(lambda *_, path=path: self._stack.append(path)),
                part.register_forward_hook(lambda _, __, out, path=path: self._leave(out, path)),
            ]

    def _leave(self, output: Any, path: str) -> None:
        """Modules inside left before, so what is new behind the output is this module's."""
        self._stack.pop()
        functions = [output.grad_fn] if isinstance(output, torch.Tensor) else []
        while functions:
            function = functions.pop()
            if function is None or function in self._seen:
                continue
            self._seen.add(function)
            self._handles.append(function.register_prehook(lambda _: self._enter(path)))
            functions += [following for following, _ in function.next_functions]

    def _enter(self, path: str) -> None:
        self._stack[-1] = path

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.places.setdefault(name, self._stack[-1])
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random.setdefault(name, self._stack[-1])
        return func(*args, **(kwargs or {}))

    def close(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()
