"""Every crash point: a federation without other faults, in which one process dies at its n-th
durable step, for every n, once or twice in a row (the second time while it recovers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from simulator.faults.world import Outcome, World, simulate

SECOND_STEPS = (1, 2, 3, 5, 8, 13)
"""Steps of the second life before it dies, too; the points of the first take turns."""
PATIENCE_MS = 1_200_000


class CrashPoint(NamedTuple):
    """Where a process dies."""

    seed: int
    buffered: bool
    process: str
    cuts: tuple[int, ...]


def _prepare(world: World, process: str, cuts: tuple[int, ...]) -> None:
    world.faults.heal_after_ms = PATIENCE_MS  # nothing else happens: there is nothing to heal
    for candidate in world.processes():
        if candidate.name == process:
            candidate.cuts = list(cuts)


def crash_points(seed: int, *, buffered: bool, twice: bool) -> Iterator[CrashPoint]:
    """All crash points of the federation that this seed draws, of coordinator and first device."""
    reached = crash_at(CrashPoint(seed, buffered, "", ())).reached
    for process in ("coordinator", "d0"):
        for number in range(1, reached[process] + 1):
            second = (SECOND_STEPS[number % len(SECOND_STEPS)],) if twice else ()
            yield CrashPoint(seed, buffered, process, (number, *second))


def crash_at(point: CrashPoint) -> Outcome:
    """What becomes of the federation."""
    seed, buffered, process, cuts = point

    def prepare(world: World) -> None:
        _prepare(world, process, cuts)
        _simplify(world, buffered=buffered)

    return simulate(seed, kinds=frozenset(), prepare=prepare)


def _simplify(world: World, *, buffered: bool) -> None:
    """Two rounds of two devices: each kind of step is there, and a run is short."""
    rounds = world.settings.config.rounds
    changes: dict[str, object] = {
        "count": 2,
        "mode": "synchronous",
        "cohort_size": 2,
        "cohort_fraction": None,
        "over_selection": 1.0,
        "quorum": 1,
        "devices_min": 2,
        "devices_wait_ms": 300_000,
        "collect_ms": 60_000,
        "abandoned_max": 20,
    }
    if buffered:
        changes |= {"mode": "buffered", "cohort_size": None, "buffer_size": 2, "concurrency": 2}
    rounds = msgspec.structs.replace(rounds, **changes)
    config = msgspec.structs.replace(world.settings.config, rounds=rounds)
    world.settings = world.settings._replace(config=config)
    world.coordinator.config = config
    del world.devices[2:]
