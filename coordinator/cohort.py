"""Cohort selection: a lottery that anybody can repeat."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache
from heapq import nsmallest

from coordinator.config import RoundsConfig


def wanted_count(config: RoundsConfig, online_count: int) -> int:
    """Updates wanted: the cohort size, or m = max(C K, 1) of McMahan et al. 2016, Algorithm 1."""
    if config.cohort_size is not None:
        wanted = config.cohort_size
    else:
        assert config.cohort_fraction is not None
        wanted = max(round(config.cohort_fraction * online_count), config.quorum, 1)
    return min(wanted, online_count)


def select_cohort(
    online: Iterable[str], wanted: int, over_selection: float, seed: int, round_id: int
) -> tuple[str, ...]:
    """Device ids of the cohort, sorted: those with the smallest SHA-256 of seed, round and name.

    Depends on the set of devices only, never on their order; each device has the same chance.
    """
    invited = math.ceil(wanted * over_selection - 1e-9)  # 100 * 1.1 is 110, not 110.00000000000001
    tickets = _tickets(seed, round_id)
    return tuple(sorted(nsmallest(invited, set(online), key=tickets.__getitem__)))


class _Tickets(dict[str, bytes]):
    """Of one round, each drawn once: a buffered round asks again for every free device."""

    def __init__(self, seed: int, round_id: int) -> None:
        super().__init__()
        self._prefix = f"{seed}/{round_id}/"

    def __missing__(self, device_id: str) -> bytes:
        ticket = hashlib.sha256(f"{self._prefix}{device_id}".encode()).digest()
        self[device_id] = ticket
        return ticket


@lru_cache(maxsize=2)
def _tickets(seed: int, round_id: int) -> _Tickets:
    return _Tickets(seed, round_id)
