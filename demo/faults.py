"""What goes wrong in the demo, and when: a pure function of the seed.

The first round is left alone: in it the devices open the model for the first time. From then on, in
every round about a fifth of the devices that could take part are killed in mid-training and come
back one or two rounds later; one more has a link so slow that its update comes after the deadline;
and once, for two or three rounds, one device loses its network. However it falls, the quorum is
left alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

DROP_RATE = 0.2
"""Of the devices that can take part in a round."""
FIRST_ROUND = 2
"""The first round with faults."""


@dataclass(frozen=True)
class RoundFaults:
    """The faults of one round."""

    killed: dict[str, int] = field(default_factory=dict)
    """Device -> round in which it is started again."""
    late: str | None = None
    """Device whose update comes after the deadline."""
    offline: str | None = None
    """Device without network."""


@dataclass(frozen=True)
class FaultPlan:
    """Faults by round id, from 1; rounds beyond the plan have none."""

    rounds: tuple[RoundFaults, ...] = ()

    def of(self, round_id: int) -> RoundFaults:
        """The faults of one round."""
        inside = 1 <= round_id <= len(self.rounds)
        return self.rounds[round_id - 1] if inside else RoundFaults()

    def restarted(self, round_id: int) -> tuple[str, ...]:
        """Devices that come back in this round."""
        return tuple(
            device
            for faults in self.rounds[: max(0, round_id - 1)]
            for device, back in faults.killed.items()
            if back == round_id
        )


def plan_faults(seed: int, devices: Sequence[str], rounds: int, quorum: int) -> FaultPlan:
    """Draw the faults of `rounds` rounds; at least `quorum` devices are untouched in each."""
    lots = random.Random(f"faults/{seed}")  # noqa: S311 - a repeatable demo, not a secret
    victim, outage = _outage(lots, devices, rounds)
    away_until: dict[str, int] = {}
    planned = [RoundFaults()] * min(rounds, FIRST_ROUND - 1)
    for round_id in range(FIRST_ROUND, rounds + 1):
        if round_id in outage:
            away_until[victim] = max(away_until.get(victim, 0), outage.stop)
        able = [
            device
            for device in devices
            if away_until.get(device, 0) < round_id
            and not (device == victim and round_id in outage)
        ]
        faults = _draw(lots, able, round_id, spare=len(able) - quorum)
        if round_id in outage:
            faults = RoundFaults(faults.killed, faults.late, offline=victim)
        away_until.update(faults.killed)
        planned.append(faults)
    return FaultPlan(tuple(planned))


def _outage(lots: random.Random, devices: Sequence[str], rounds: int) -> tuple[str, range]:
    """Who loses the network, and in which rounds: somewhere in the middle of the run."""
    length = lots.choice((2, 3))
    start = max(FIRST_ROUND, lots.randint(rounds // 4 + 1, rounds // 2 + 1))
    return lots.choice(devices), range(start, min(start + length, rounds + 1))


def _draw(lots: random.Random, able: list[str], round_id: int, spare: int) -> RoundFaults:
    """Who of the able devices dies, and who is late; together at most `spare`."""
    order = lots.sample(able, len(able))
    wanted = sum(lots.random() < DROP_RATE for _ in able)
    killed = {
        device: round_id + lots.choice((1, 2)) for device in order[: max(0, min(wanted, spare))]
    }
    late = order[len(killed)] if spare > len(killed) else None
    return RoundFaults(killed, late)
