"""Random numbers by what they are for: no state, so that draws of one component, device or task
never move those of another, and every policy sees the same fates.

Derived by BLAKE2b with a key of its own for each component: some microseconds a draw, no memory.
"""

from __future__ import annotations

import hashlib
import math
import struct
from statistics import NormalDist
from typing import NamedTuple

_QUESTION = struct.Struct("<3Q")
_ANSWER = struct.Struct("<4Q")
_NORMAL = NormalDist()


class Draw(NamedTuple):
    """Four independent numbers, uniform in the open interval (0, 1)."""

    first: float
    second: float
    third: float
    fourth: float


class Lots:
    """The draws of one component."""

    def __init__(self, seed: int, component: str) -> None:
        self._key = hashlib.sha256(f"{seed}/{component}".encode()).digest()

    def draw(self, device: int, number: int = 0, part: int = 0) -> Draw:
        """The numbers of one device's `number`-th draw; all arguments in [0, 2^64)."""
        question = _QUESTION.pack(device, number, part)
        answer = hashlib.blake2b(question, digest_size=32, key=self._key).digest()
        a, b, c, d = _ANSWER.unpack(answer)
        return Draw(_open(a), _open(b), _open(c), _open(d))


def exponential(uniform: float, mean: float) -> float:
    """The value of an exponential distribution at this quantile."""
    return -mean * math.log(uniform)


def log_normal(uniform: float, sigma: float) -> float:
    """The value of a log-normal distribution with median 1 at this quantile."""
    return math.exp(sigma * _NORMAL.inv_cdf(uniform)) if sigma else 1.0


def _open(number: int) -> float:
    """52 of its bits, and a half, so that it is neither 0 nor 1."""
    return ((number >> 12) + 0.5) * 2.0**-52
