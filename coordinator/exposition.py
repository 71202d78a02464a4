"""The coordinator's figures in Prometheus' words (docs/operations.md lists them)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from coordinator.config import CoordinatorConfig
from coordinator.figures import BACKUP_NAME, DURATIONS_S, Figures, Rounds
from coordinator.round_state import Answer, Phase
from coordinator.store import Model
from coordinator.traffic import Traffic
from fedtide import __version__

REASONS_MAX = 50
"""Labels of one metric: the code chooses the words, but nobody counts them."""
SIZES_S = 60.0
"""A look at every file of the store is worth this long."""


class Sizes(NamedTuple):
    """Bytes of the state folder, and what is free on its disk."""

    database: int
    blobs: int
    free: int


def sizes_of(folder: Path) -> Sizes:
    """Look. What goes away meanwhile is not there."""
    return Sizes(
        sum(_size(path) for path in folder.glob("coordinator.db*")),
        sum(_size(path) for name in ("blobs", "partial") for path in folder.glob(f"{name}/*")),
        shutil.disk_usage(folder).free,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class Exposition(Collector):
    """What a scrape reads; `figures` gives the newest, and their age in seconds."""

    def __init__(
        self,
        figures: Callable[[], tuple[Figures, float]],
        config: CoordinatorConfig,
        traffic: Traffic,
    ) -> None:
        self._figures = figures
        self._config = config
        self._traffic = traffic
        self._sizes: tuple[float, Sizes] | None = None

    def describe(self) -> list[Metric]:
        """Nothing in advance: figures are not there before the coordinator is."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        figures, age_s = self._figures()
        info = GaugeMetricFamily("fedtide_build_info", "Always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield _gauge("snapshot_age_seconds", "Since these figures were taken.", age_s)
        yield from self._fleet_and_round(figures)
        yield from _rounds(figures.rounds)
        yield from _models(figures.model, figures.judged)
        if figures.aggregate_ms is not None:
            told = "What the newest model took to make, evaluation included."
            yield _gauge("aggregation_seconds", told, figures.aggregate_ms / 1000)
        yield from _counted(figures.counts)
        yield from _link(self._traffic)
        yield from self._disk()

    def _fleet_and_round(self, figures: Figures) -> Iterator[Metric]:
        state, rounds = figures.state, self._config.rounds
        phases = GaugeMetricFamily("fedtide_phase", "1 for the phase it is in.", labels=["phase"])
        for phase in get_args(Phase):
            phases.add_metric([phase], phase == state.phase)
        yield phases
        yield _gauge("devices_online", "Devices that can be invited.", len(state.online))
        yield _gauge("devices_quarantined", "Devices that are left out.", figures.quarantined)
        yield _gauge("round_id", "The newest round that was opened.", state.round_id)
        yield _gauge("rounds_done", "Training rounds that made a model.", state.rounds_done)
        yield _gauge("rounds_planned", "As the configuration says.", rounds.count)
        answers = [member.answer for member in state.cohort]
        told = "Devices of the open round, by answer."
        tasks = GaugeMetricFamily("fedtide_round_devices", told, labels=["answer"])
        for answer in get_args(Answer):
            tasks.add_metric([answer], answers.count(answer))
        yield tasks
        yield _gauge("round_wanted", "Updates that close the open round.", state.wanted)
        yield _gauge("round_quorum", "Updates that make it count.", state.quorum)
        if state.deadline_at_ms is not None:
            left_s = (state.deadline_at_ms - figures.at_ms) / 1000
            yield _gauge("deadline_seconds", "Until what is waited for has to be there.", left_s)

    def _disk(self) -> Iterator[Metric]:
        now_s = time.monotonic()
        if self._sizes is None or now_s - self._sizes[0] > SIZES_S:
            self._sizes = (now_s, sizes_of(self._config.state_dir))
        database, blobs, free = self._sizes[1]
        yield _gauge("database_bytes", "The database with its log.", database)
        yield _gauge("blobs_bytes", "Models, updates, what is arriving.", blobs)
        yield _gauge("disk_free_bytes", "On the disk of state_dir.", free)
        with suppress(OSError):
            taken_s = (self._config.state_dir / BACKUP_NAME).stat().st_mtime
            told = "When the last backup was taken, since 1970; absent if none was."
            yield _gauge("backup_timestamp_seconds", told, taken_s)


def _rounds(rounds: Rounds) -> Iterator[Metric]:
    told = "Rounds that have closed."
    closed = CounterMetricFamily("fedtide_rounds", told, labels=["kind", "outcome"])
    for (kind, outcome), count in sorted(rounds.outcomes.items()):
        closed.add_metric([kind, outcome], count)
    yield closed
    bounds = [*map(str, DURATIONS_S), "+Inf"]
    buckets = [
        (bound, float(count))
        for bound, count in zip(bounds, accumulate(rounds.durations), strict=True)
    ]
    durations = HistogramMetricFamily(
        "fedtide_round_duration_seconds", "From the first invitation to the model, or the end."
    )
    durations.add_metric([], buckets, rounds.seconds)
    yield durations


def _models(newest: Model, judged: Model) -> Iterator[Metric]:
    yield _gauge("model_version", "The newest global model.", newest.version)
    yield _gauge(
        "model_timestamp_seconds", "When it was made, since 1970.", newest.made_at_ms / 1000
    )
    losses = GaugeMetricFamily(
        "fedtide_model_loss", "Of the newest model that was judged.", labels=["data"]
    )
    accuracies = GaugeMetricFamily(
        "fedtide_model_accuracy", "Of the newest model that was judged.", labels=["data"]
    )
    for data, metrics in (("test", judged.metrics), ("held_out", judged.held_out)):
        if metrics is not None and metrics.loss is not None:
            losses.add_metric([data], metrics.loss)
        if metrics is not None and metrics.accuracy is not None:
            accuracies.add_metric([data], metrics.accuracy)
    yield from (losses, accuracies)


def _counted(counts: Mapping[str, int]) -> Iterator[Metric]:
    updates = CounterMetricFamily(
        "fedtide_updates", "Verdicts on updates.", labels=["verdict", "reason"]
    )
    refused = CounterMetricFamily(
        "fedtide_messages_refused", "Messages of devices that were of no use.", labels=["reason"]
    )
    others = 0
    for number, (name, count) in enumerate(sorted(counts.items())):
        verdict, _, reason = name.partition(": ")
        if number >= REASONS_MAX:
            others += count
        elif verdict == "refused":
            refused.add_metric([reason], count)
        else:
            updates.add_metric([verdict, reason], count)
    if others:
        refused.add_metric(["others"], others)
    yield from (updates, refused)


def _link(traffic: Traffic) -> Iterator[Metric]:
    yield _gauge("broker_connected", "1: there is a link to the broker.", traffic.connected)
    for name, told, count in (
        ("broker_disconnects", "Links that were lost.", traffic.disconnects),
        ("broker_refusals", "Messages that it did not take.", traffic.messages_refused_by_broker),
        ("received_messages", "From the broker.", traffic.received_messages),
        ("received_bytes", "Payloads from the broker.", traffic.received_bytes),
        ("sent_messages", "To the broker.", traffic.sent_messages),
        ("sent_bytes", "Payloads to the broker.", traffic.sent_bytes),
    ):
        since = "Since this process started."
        yield CounterMetricFamily(f"fedtide_{name}", f"{told} {since}", value=count)


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedtide_{name}", told, value=value)
