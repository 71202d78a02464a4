"""How fast this machine multiplies and copies: `python -m edge_client.arithmetic`.

A process of its own, because numpy's library reads how many threads to use when it is loaded.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from fedtide.launch import module_command, module_environment

_SECONDS = 0.1
_SECONDS_MAX = 30
_SIZE = 384
"""Rows and columns: large enough for full speed, small enough for a slow device."""
_COPY_BYTES = 1 << 24
"""Larger than most caches, as the weights of a model are."""
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class Speed(NamedTuple):
    """Of one thread."""

    flops_per_second: float
    """Of a product of two float32 matrices."""
    bytes_per_second: float
    """Copied from memory to memory."""


def measure_speed() -> Speed | None:
    """In about half a second; None if it could not be measured."""
    try:
        done = subprocess.run(
            module_command("edge_client.arithmetic"),
            env=module_environment(**dict.fromkeys(_THREADS, "1")),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_MAX,
            check=True,
        )
        flops, copied = done.stdout.split()
        return Speed(float(flops), float(copied))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _measure() -> Speed:
    import numpy as np

    rng = np.random.default_rng(0)
    a = rng.standard_normal((_SIZE, _SIZE), np.float32)
    out = np.empty_like(a)
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return Speed(
        2 * _SIZE**3 / _best(lambda: np.matmul(a, a, out=out)),
        _COPY_BYTES / _best(lambda: np.copyto(target, source)),
    )


def _best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls: others may use the machine, too."""
    function()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - before)
    return best


if __name__ == "__main__":
    print(*_measure())
