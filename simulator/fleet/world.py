"""What the shells of a simulated federation share: time, conditions, sizes, and who writes down
what happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from coordinator.config import CoordinatorConfig
from edge_client.training import steps_per_epoch
from fedtide.plan import Plan
from fedtide.vectors import encoded_bytes
from simulator.agenda import START_MS, Agenda
from simulator.fleet.conditions import Conditions
from simulator.fleet.events import Event

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


class Work(NamedTuple):
    """How long a device's training of one task takes, and what it comes to."""

    epoch_ms: float
    total_ms: float
    steps: int
    steps_in_epoch: int


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
        """Of a whole training by this device.

        With `training_ms_max` it ends after the step in which that time has passed.
        """
        examples = self.examples(device)
        epoch_ms = self.conditions.epoch_ms(device, plan, examples) * slow_factor
        total_ms = self.conditions.training_ms(device, plan, examples) * slow_factor
        in_epoch = steps_per_epoch(plan, examples)
        steps = plan.epochs * in_epoch
        if plan.steps_max is not None:
            steps = min(steps, plan.steps_max)
        budget_ms = getattr(plan, "training_ms_max", None)
        if budget_ms is not None and total_ms > budget_ms:
            step_ms = total_ms / steps
            steps = min(steps, max(1, math.ceil(budget_ms / step_ms)))
            total_ms = steps * step_ms
        return Work(epoch_ms, total_ms, steps, in_epoch)

    def transfer_ms(self, device: int, size_bytes: int, *, up: bool) -> int:
        """Of so many bytes, at least one millisecond."""
        direction = "up" if up else "down"
        return max(1, round(self.conditions.transfer_ms(device, size_bytes, direction)))

    def job_ms(self, updates: int) -> int:
        """Of an aggregation and the evaluation of its model, on the coordinator's machine."""
        return JOB_MS_MIN + round(updates * self.sizes.update * UPDATE_NS_PER_BYTE / 1e6)
