"""Real learning on simulated devices: `simulator.learning`, opened as a scenario says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from coordinator.plans import check_against
from fedtide.bundle import Bundle
from fedtide.errors import ConfigError
from fedtide.manifest import MANIFEST_NAME, device_files
from simulator.fleet.events import Evaluated
from simulator.fleet.learning import Part
from simulator.fleet.scenario import Policy, Scenario, coordinator_config, policies
from simulator.learning import models
from simulator.learning.bundles import named_bundle
from simulator.learning.datasets import open_data_set
from simulator.learning.learner import Learner, check_simulable
from simulator.learning.partitions import divided
from simulator.learning.workers import Where, open_workers


class Lesson(NamedTuple):
    """What is learned in a run, and from what."""

    learning: RealLearning
    examples: tuple[int, ...]
    """Of each device."""
    parameters: int
    """Values that travel."""
    bundle_bytes: int


class RealLearning:
    """`Learning` by `Models`. Measurements are told when the version after them is made: at the
    same place of the record, however long they took and whatever an interrupted run knew."""

    def __init__(self) -> None:
        self._measured: deque[models.Version] = deque()
        self._models: models.Models | None = None

    def hear(self, version: models.Version) -> None:
        """A version is measured."""
        self._measured.append(version)

    def teach(self, of: models.Models) -> None:
        """These are the models."""
        self._models = of

    def advance(self, version: int, parts: Sequence[Part], /) -> list[Evaluated]:
        """Train whoever counts, and make the version.

        Raises:
            FedtideError: of a worker, the data, or what was learned.
        """
        assert self._models is not None
        self._models.advance(version, [_part(part) for part in parts])
        return self._told(version - 1)

    def settle(self) -> list[Evaluated]:
        """Wait for the last measurement, and save everything."""
        assert self._models is not None
        self._models.settle()
        self._models.save()
        return self._told(None)

    def _told(self, newest: int | None) -> list[Evaluated]:
        told = []
        while self._measured and (newest is None or self._measured[0].version <= newest):
            version = self._measured.popleft()
            if version.metrics is not None:
                metrics = version.metrics
                told.append(Evaluated(0, version.version, metrics.loss, metrics.accuracy))
        return told


@contextmanager
def real_learning(
    scenario: Scenario, policy: Policy, where: Where, folder: Path | None
) -> Iterator[Lesson]:
    """Data, partition, workers and models of one policy. What is in `folder` is not learned again.

    Raises:
        ConfigError, BundleError, ExportError: no such model or data set, or they do not fit, or a
            policy of the scenario is none for this model.
        DataError: the data are missing or damaged.
        StateError: the folder holds other models, or cannot be used.
    """
    config = scenario.learning
    assert config.data is not None, "a scenario with real learning names its data"
    data = open_data_set(config.data, config.data_dir)
    parts = divided(
        data,
        config.partition,
        scenario.fleet.devices,
        scenario.seed,
        shards_per_device=config.shards_per_device,
        alpha=config.alpha,
    )
    bundle = named_bundle(config.model)
    _check(scenario, bundle)
    learner = Learner(bundle, data, parts)
    batches = learner.test_batches  # read before there are processes: they share it
    learning = RealLearning()
    workers = open_workers(learner, where)
    try:
        kept = 1 + policy.rounds.staleness_max if policy.rounds.late_counts else 1
        sizes = tuple(len(part) for part in parts)
        made = models.Models(
            bundle,
            workers,
            batches,
            folder,
            versions_kept=kept,
            on_version=learning.hear,
            weights=policy.rounds.weights,
            examples=sizes,
            encoding=scenario.encoding,
        )
        learning.teach(made)
        try:
            yield Lesson(learning, sizes, learner.shared_count, _bundle_bytes(bundle))
        except KeyboardInterrupt:
            made.save()
            raise
    finally:
        workers.close()


def _check(scenario: Scenario, bundle: Bundle) -> None:
    """Whether a coordinator would run this, and it can be simulated: of every policy, so that
    nobody hears of the last one's mistake when the others are done.

    Raises:
        ConfigError: it would not, or cannot.
    """
    for policy in policies(scenario):
        try:
            check_against(coordinator_config(scenario, policy), bundle.manifest)
            check_simulable(bundle, policy.plan)
        except ConfigError as exc:
            where = f"policy {policy.name!r}: " if scenario.policy else ""
            raise ConfigError(where + exc.args[0], hint=exc.hint) from exc


def _part(part: Part) -> models.Part:
    plan = part.plan
    if plan.training_ms_max is not None:  # what came of the time are these steps
        plan = msgspec.structs.replace(plan, training_ms_max=None, steps_max=part.steps)
    return models.Part(part.device, plan, part.base_version, part.staleness)


def _bundle_bytes(bundle: Bundle) -> int:
    files = bundle.manifest.files
    paths = device_files(bundle.manifest, "portable")
    return len(bundle.fetch(MANIFEST_NAME)) + sum(files[path].size_bytes for path in paths)
