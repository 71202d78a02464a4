"""Cohort selection: a lottery that anybody can repeat."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

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

    def ticket(device_id: str) -> bytes:
        return hashlib.sha256(f"{seed}/{round_id}/{device_id}".encode()).digest()

    drawn = sorted(set(online), key=ticket)
    invited = math.ceil(wanted * over_selection - 1e-9)  # 100 * 1.1 is 110, not 110.00000000000001
    return tuple(sorted(drawn[:invited]))
