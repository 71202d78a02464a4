"""One run of FedAvg in the protocol of McMahan et al. 2016: a setting, a learning rate, a curve.

Every device is there and answers: what is left of a federation is Algorithm 1. Cohorts, plans,
training, reduction and evaluation are the production's; a run goes on where it was interrupted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from coordinator.cohort import select_cohort, wanted_count
from coordinator.config import RoundsConfig
from coordinator.plans import round_plan
from fedtide.plan import Plan
from simulator.device_names import device_name, index_of
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


def curve_of(versions: Iterable[Version]) -> tuple[tuple[int, float], ...]:
    """(round, accuracy) of the versions that were measured."""
    return tuple(
        (version.version, version.metrics.accuracy or 0.0)
        for version in versions
        if version.metrics is not None
    )


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
    rounds_max: float = math.inf,
    on_version: Callable[[Version], None] = lambda _: None,
) -> Result:
    """Run until the target, `experiment.rounds_max` or `rounds_max`, and go on where it stopped.

    Raises:
        FedtideError: of data, disk or a worker.
    """
    best, reached = 0.0, math.inf
    test_batches = learner.test_batches  # read before there are processes: they share it

    def told(version: Version) -> None:
        nonlocal best, reached
        if version.metrics is not None:
            best = max(best, version.metrics.accuracy or 0.0)
            if best >= experiment.target:
                reached = min(reached, version.version)
        on_version(version)

    def due(version: int) -> bool:
        return version % experiment.evaluate_every == 0 or best >= experiment.target - MARGIN

    def ends(round_id: int) -> str:
        # A version is measured beside the next round: that one is always made, so that where a
        # run ends does not depend on when it was saved.
        if round_id > reached + 1:
            return "target"
        if round_id > experiment.rounds_max:
            return "rounds_max"
        return "stopped" if round_id > rounds_max else ""

    workers = open_workers(learner, workers_count)
    try:
        models = Models(learner.bundle, workers, test_batches, folder, on_version=told, due=due)
        try:
            ended = _advance(models, experiment, ends)
        except KeyboardInterrupt:
            models.save()
            raise
        models.save()
        return _result(experiment, models.history, "target" if reached < math.inf else ended)
    finally:
        workers.close()


def _advance(models: Models, experiment: Experiment, ends: Callable[[int], str]) -> str:
    """Round after round, from the first that is not on disk; how it ended."""
    names = [device_name(number) for number in range(experiment.devices)]
    rounds = experiment.rounds()
    wanted = wanted_count(rounds, experiment.devices)
    for round_id in itertools.count(models.saved + 1):
        if ended := ends(round_id):
            break
        cohort = select_cohort(names, wanted, 1.0, experiment.seed, round_id)
        plan = round_plan(experiment.plan(), rounds, round_id, round_id - 1)
        parts = [Part(index_of(name), plan, round_id - 1) for name in cohort]
        try:
            models.advance(round_id, parts)
        except DivergedError as exc:
            ended = f"diverged: {exc}"
            break
    return ended


def _result(experiment: Experiment, history: Sequence[Version], ended: str) -> Result:
    rounds = rounds_to_target(curve_of(history), experiment.target)
    return Result(experiment, rounds, ended, tuple(history))
