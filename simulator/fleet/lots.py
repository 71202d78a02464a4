"""Random numbers by what they are for: no state, so that draws of one component, device or task
never move those of another, and every policy sees the same fates.

Derived by BLAKE2b with a key of its own for each component: a microsecond or two a draw, no memory.
"""

from __future__ import annotations

import hashlib
import math
import struct
from statistics import NormalDist

_QUESTION = struct.Struct("<2Q")
_ANSWER = struct.Struct("<4Q")
_NORMAL = NormalDist()
_STEP = 2.0**-52


Draw = tuple[float, float, float, float]
"""Independent numbers, uniform in the open interval (0, 1)."""


class Lots:
    """The draws of one component."""

    def __init__(self, seed: int, component: str) -> None:
        key = hashlib.sha256(f"{seed}/{component}".encode()).digest()
        self._keyed = hashlib.blake2b(digest_size=_ANSWER.size, key=key)

    def draw(self, device: int, number: int = 0) -> Draw:
        """The numbers of one device's `number`-th draw; both in [0, 2^64)."""
        hashed = self._keyed.copy()
        hashed.update(_QUESTION.pack(device, number))
        a, b, c, d = _ANSWER.unpack(hashed.digest())
        # 52 of the bits, and a half, so that it is neither 0 nor 1.
        return (
            ((a >> 12) + 0.5) * _STEP,
            ((b >> 12) + 0.5) * _STEP,
            ((c >> 12) + 0.5) * _STEP,
            ((d >> 12) + 0.5) * _STEP,
        )


def exponential(uniform: float, mean: float) -> float:
    """The value of an exponential distribution at this quantile."""
    return -mean * math.log(uniform)


def log_normal(uniform: float, sigma: float) -> float:
    """The value of a log-normal distribution with median 1 at this quantile."""
    return math.exp(sigma * _NORMAL.inv_cdf(uniform)) if sigma else 1.0
