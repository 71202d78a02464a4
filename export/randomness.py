"""Dropout as a function of a seed: the same masks in the exported step and in PyTorch.

A mask is computed by integers from (seed, number of the draw in the step, index of the element),
in operators that ONNX has, so that a graph needs no random operator and a step can be repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_MODULUS = 2**31 - 1
"""A Mersenne prime: products of two residues fit into 63 bits."""
_MULTIPLIER, _STRIDE = 1_343_714_438, 742_938_285
"""Primitive roots of it with good spectra (Fishman & Moore 1986, table 5; L'Ecuyer 1999)."""

DRAWS = frozenset({"bernoulli_", "bernoulli", "dropout", "native_dropout"})
"""Random operators that have a seeded form; others are refused."""


def kept(seed: torch.Tensor, draw: int, like: torch.Tensor, keep: float) -> torch.Tensor:
    """Which elements a draw keeps: bool of the shape of `like`, each with probability `keep`.

    `seed` is int64 []. Two rounds of squaring modulo a prime; the seed enters in both.
    """
    start = ((seed % _MODULUS) * _STRIDE + (draw + 1) * _MULTIPLIER) % _MODULUS
    first = (start * start + _STRIDE) % _MODULUS
    second = (first * first + start) % _MODULUS
    index = torch.arange(like.numel(), dtype=torch.int64, device=like.device)
    mixed = (index * _MULTIPLIER + first) % _MODULUS
    mixed = (mixed * mixed + second) % _MODULUS
    mixed = (mixed * mixed + index + first) % _MODULUS
    return (mixed < int(keep * _MODULUS)).reshape(like.shape)


class SeededRandomness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, every dropout takes its mask from `kept`; without a seed it keeps all."""

    def __init__(self, seed: torch.Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws = 0
        self._seed = seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.native_dropout.default:
            x, rate, train = args
            if not train or rate == 0:
                return x.clone(), torch.ones_like(x, dtype=torch.bool)
            mask = self._kept(x, 1 - rate)
            return x * mask.to(x.dtype) * (0.0 if rate == 1 else 1 / (1 - rate)), mask
        if func is aten.bernoulli_.float:
            noise, keep = (*args, 0.5)[:2]
            return noise.copy_(self._kept(noise, keep))
        if func is aten.bernoulli.p:
            return self._kept(args[0], args[1]).to(args[0].dtype)
        return func(*args, **kwargs)

    def _kept(self, like: torch.Tensor, keep: float) -> torch.Tensor:
        self.draws += 1
        if self._seed is None:
            return torch.ones_like(like, dtype=torch.bool)
        return kept(self._seed, self.draws - 1, like, keep)
