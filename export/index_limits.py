"""Which integers a model takes: those that go straight into an embedding are below its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_EMBEDDINGS = {"aten::embedding", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"}
_UNKNOWN = torch.iinfo(torch.int64).max


class IndexLimits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a forward pass of x, int64 and contiguous.

    What is computed from x (clamped, shifted, mapped) says nothing about x itself: only views of
    it count, and only while nobody has written to it. A plain `weight[x]` takes negative indices
    on purpose, so it does not count either.
    """

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._x, self._version = x, x._version
        self._below = torch.full((x.numel(),), _UNKNOWN)

    @property
    def below(self) -> int | None:
        """Every element must be below this; None if one of them may be anything.

        Where columns go into different embeddings, that of the largest.
        """
        largest = int(self._below.max()) if len(self._below) else _UNKNOWN
        return None if largest == _UNKNOWN else largest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _EMBEDDINGS:
            self._note(*args[:2])
        return func(*args, **(kwargs or {}))

    def _note(self, weight: torch.Tensor, indices: torch.Tensor) -> None:
        x = self._x
        mine = indices.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        if not mine or indices.dtype != x.dtype or x._version != self._version:
            return
        positions = torch.arange(x.numel()).as_strided(
            indices.size(), indices.stride(), indices.storage_offset()
        )
        used = positions.reshape(-1)
        self._below[used] = self._below[used].clamp(max=weight.shape[0])
