"""What the shells of a simulated federation share: time, conditions, sizes, and who writes down
what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from coordinator.config import CoordinatorConfig
from fedtide.plan import Plan
from fedtide.vectors import encoded_bytes
from simulator.agenda import START_MS, Agenda
from simulator.fleet.conditions import Conditions
from simulator.fleet.events import Event
from simulator.fleet.profiles import Work

BUNDLE_BYTES = 20_000
"""Manifest and portable graphs of a small model, where no bundle says."""
UPDATE_NS_PER_BYTE = 5.3
"""Of aggregation: 100 updates of 6.65 MB in 3.5 s (docs/benchmarks.md, "Aggregation")."""
JOB_MS_MIN = 200
"""Of a commit, a publication, and an evaluation that is short beside a round."""


class Sizes(NamedTuple):
    """What travels, in bytes."""

    bundle: int
    model: int
    """Values as float32."""
    update: int

    @classmethod
    def of(cls, parameters: int, config: CoordinatorConfig, bundle_bytes: int) -> Sizes:
        """Those of a model with so many values that travel."""
        update = encoded_bytes(parameters, config.encoding)
        return cls(bundle_bytes, encoded_bytes(parameters, "f32"), update)


class World:
    """See the module."""

    def __init__(
        self,
        conditions: Conditions,
        config: CoordinatorConfig,
        sizes: Sizes,
        write: Callable[[Event], None],
        examples: Callable[[int], int] | None = None,
    ) -> None:
        """`examples`: of a device, where a partition says; else those of its traits."""
        self.agenda = Agenda()
        self.conditions = conditions
        self.config = config
        self.sizes = sizes
        self.write = write
        self.examples = examples or (lambda device: conditions.traits(device).examples)

    @property
    def now_ms(self) -> int:
        """Since the start of the run, as the record counts."""
        return self.agenda.now_ms - START_MS

    def work(self, device: int, plan: Plan, slow_factor: float) -> Work:
        """Of a whole training by this device."""
        return self.conditions.work(device, plan, slow_factor, self.examples(device))

    def transfer_ms(self, device: int, size_bytes: int, *, up: bool) -> int:
        """Of so many bytes, at least one millisecond."""
        took_ms = self.conditions.transfer_ms(device, size_bytes, "up" if up else "down")
        return max(1, round(took_ms))

    def job_ms(self, updates: int) -> int:
        """Of an aggregation and the evaluation of its model, on the coordinator's machine."""
        return JOB_MS_MIN + round(updates * self.sizes.update * UPDATE_NS_PER_BYTE / 1e6)
