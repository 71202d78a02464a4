"""One run of FedAvg in the protocol of McMahan et al. 2016: a setting, a learning rate, a curve.

Every device is there and answers: what is left of a federation is Algorithm 1. Cohorts, plans,
training, reduction and evaluation are the production's; a run goes on where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from coordinator.cohort import select_cohort, wanted_count
from coordinator.config import RoundsConfig
from coordinator.plans import round_plan
from fedtide.plan import Plan
from simulator.learning.learner import Learner
from simulator.learning.models import DivergedError, Models, Part, Version
from simulator.learning.workers import open_workers
from simulator.report.curves import rounds_to_target

Partition = Literal["iid", "shards", "natural", "iid_as_natural"]
MARGIN = 0.003
"""Of accuracy below the target, from where on every version is measured."""


class Experiment(Struct, frozen=True, forbid_unknown_fields=True):
    """A setting of the paper. FedSGD is `epochs=1, batch_size="all"`."""

    model: str
    data: str
    partition: Partition
    devices: int
    fraction: float
    """C; 0: one device a round."""
    epochs: int
    batch_size: int | Literal["all"]
    target: float
    """Accuracy on the test set."""
    rounds_max: int
    learning_rate: float
    learning_rate_decay: float = 1.0
    """Of each round."""
    seed: int = 0
    evaluate_every: int = 1
    """Rounds between two evaluations, as long as the target is far."""
    examples_at_once: int = 20
    """Parts of a large batch: fastest where they fit into the processor's cache."""

    def rounds(self) -> RoundsConfig:
        """As the coordinator would be configured."""
        return RoundsConfig(
            count=self.rounds_max,
            cohort_size=None if self.fraction else 1,
            cohort_fraction=self.fraction or None,
            learning_rate_decay=self.learning_rate_decay,
            seed=self.seed,
        )

    def plan(self) -> Plan:
        """As the coordinator would be configured."""
        return Plan(
            epochs=self.epochs,
            batch_size=self.batch_size,
            examples_at_once=self.examples_at_once,
            learning_rate=self.learning_rate,
        )


def device_name(number: int) -> str:
    """Of a device by its index in the partition: cohorts are drawn by names."""
    return f"device-{number:05}"


class Result(Struct, frozen=True):
    """What came of it."""

    experiment: Experiment
    rounds: float | None
    """To the target, interpolated; None: not reached."""
    ended: str
    versions: tuple[Version, ...]


def run(
    experiment: Experiment,
    folder: Path,
    learner: Learner,
    workers_count: int,
    *,
    rounds_max: Callable[[], float] = lambda: float("inf"),
    on_version: Callable[[Version], None] = lambda _: None,
) -> Result:
    """Run until the target, `experiment.rounds_max`, or `rounds_max()`, which may fall.

    A run that stopped because of the latter goes on when it is called again.

    Raises:
        FedtideError: of data, disk or a worker.
    """
    best = 0.0
    test_batches = learner.test_batches  # read before there are processes: they share it

    def told(version: Version) -> None:
        nonlocal best
        if version.metrics is not None:
            best = max(best, version.metrics.accuracy or 0.0)
        on_version(version)

    names = [device_name(number) for number in range(experiment.devices)]
    rounds = experiment.rounds()
    wanted = wanted_count(rounds, experiment.devices)
    workers = open_workers(learner, workers_count)

    def due(version: int) -> bool:
        return version % experiment.evaluate_every == 0 or best >= experiment.target - MARGIN

    try:
        models = Models(learner.bundle, workers, test_batches, folder, on_version=told, due=due)
        ended = "rounds_max"
        for round_id in range(1, experiment.rounds_max + 1):
            if best >= experiment.target:
                ended = "target"
                break
            if round_id > rounds_max():
                ended = "stopped"
                break
            cohort = select_cohort(names, wanted, 1.0, experiment.seed, round_id)
            plan = round_plan(experiment.plan(), rounds, round_id, round_id - 1)
            parts = [Part(int(name[7:]), plan, round_id - 1) for name in cohort]
            try:
                models.advance(round_id, parts)
            except (DivergedError, OverflowError) as exc:
                ended = f"diverged: {exc}"
                break
        models.settle()
        models.save()
        if best >= experiment.target:
            ended = "target"
        curve = [
            (version.version, version.metrics.accuracy or 0.0)
            for version in models.history
            if version.metrics is not None
        ]
        reached = rounds_to_target(curve, experiment.target)
        return Result(experiment, reached, ended, tuple(models.history))
    finally:
        workers.close()
