"""One pass over a run's events: sums by device and by round. Memory O(devices + rounds)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np

from simulator.fleet import events
from simulator.fleet.events import Event
from simulator.report.fairness import gini, jain
from simulator.report.summary import (
    Durations,
    Participation,
    Point,
    ProfileFigures,
    RoundFigures,
    Work,
)
from simulator.report.tasks import FATES, Phase, Round, Task, Tasks

PHASES: tuple[Phase, ...] = ("download", "training", "upload")
CAUSES = (*(fate for fate in FATES if fate != "counted"), "repeated")
"""Of waste: the fate of the task; epochs done again in a task that counted."""


class Digest:
    """`observe` every event, then `end`, then ask."""

    def __init__(self, devices: int, *, late_counts: bool = False) -> None:
        """`late_counts`: as `Tasks`."""
        self.rounds: list[RoundFigures] = []
        self.fates: Counter[str] = Counter()
        self.counted = [0] * devices
        """Updates in models, by device."""
        self._tasks_given = [0] * devices
        self._not_needed = [0] * devices
        self._spent_ms = [0] * devices
        self._wasted_ms = [0] * devices
        self._wasted_by: Counter[str] = Counter()
        self._dropped: dict[str, Counter[int]] = {}
        self._late: dict[str, Counter[int]] = {}
        self._down_bytes = self._up_bytes = 0
        self._told_down = self._told_up = 0
        self._models: dict[int, tuple[int, int]] = {0: (0, 0)}
        self._measured: list[events.Evaluated] = []
        self._tasks = Tasks(self._task_ended, self._round_ended, late_counts=late_counts)

    def observe(self, event: Event) -> None:
        """This has happened."""
        kind = type(event)
        if kind is events.DownloadEnded:
            self._down_bytes += event.size_bytes  # type: ignore[union-attr]
        elif kind is events.UploadEnded:
            self._up_bytes += event.size_bytes  # type: ignore[union-attr]
        elif isinstance(event, events.ModelMade):
            self._models[event.version] = event.at_ms, self._down_bytes + self._up_bytes
        elif isinstance(event, events.Evaluated):
            self._measured.append(event)
        self._tasks.observe(event)

    def end(self, at_ms: int) -> None:
        """The record ends here."""
        self._tasks.end(at_ms)

    def curve(self) -> tuple[Point, ...]:
        """The measured models, by version."""
        points = {
            event.version: Point(
                event.version, *self._models[event.version], event.accuracy, event.loss
            )
            for event in self._measured
            if event.version in self._models
        }
        return tuple(points[version] for version in sorted(points))

    def last_model_ms(self) -> int:
        """When the newest model was made."""
        return max(at_ms for at_ms, _ in self._models.values())

    def work(self) -> Work:
        """Of all devices."""
        spent, wasted = sum(self._spent_ms), sum(self._wasted_ms)
        by_cause = {cause: self._wasted_by[cause] for cause in CAUSES}
        return Work(spent, spent - wasted, by_cause, wasted / spent if spent else 0.0)

    def participation(self, invited: Sequence[int]) -> Participation:
        """Of all devices; `invited`: how often, by device."""
        counted, asked = np.array(self.counted), np.array(invited)
        return Participation(
            float((asked > 0).mean()), float((counted > 0).mean()), gini(counted), jain(counted)
        )

    def profiles(self, names: Sequence[str]) -> dict[str, ProfileFigures]:
        """By profile; `names` [devices]."""
        members: dict[str, list[int]] = {}
        for device, name in enumerate(names):
            members.setdefault(name, []).append(device)
        return {name: self._profile(members[name]) for name in sorted(members)}

    def durations(self) -> Durations | None:
        """Of the rounds that closed."""
        values = sorted(r.duration_ms for r in self.rounds if r.duration_ms is not None)
        if not values:
            return None
        p90 = float(np.percentile(values, 90))
        return Durations(values[0], float(median(values)), p90, values[-1])

    def _profile(self, devices: list[int]) -> ProfileFigures:
        def total(by_device: Sequence[int] | Counter[int]) -> int:
            return sum(by_device[device] for device in devices)

        return ProfileFigures(
            devices=len(devices),
            tasks=total(self._tasks_given),
            counted=total(self.counted),
            counted_share=sum(self.counted[device] > 0 for device in devices) / len(devices),
            dropped={phase: total(by) for phase, by in sorted(self._dropped.items())},
            late={phase: total(by) for phase, by in sorted(self._late.items())},
            not_needed=total(self._not_needed),
            spent_ms=total(self._spent_ms),
            wasted_ms=total(self._wasted_ms),
        )

    def _task_ended(self, task: Task, entry: Round) -> None:
        device = task.device
        worked_ms = task.spent_ms("training")
        self._spent_ms[device] += worked_ms
        counted = task.fate == "counted"
        wasted_ms = task.lost_ms if counted else worked_ms
        self._wasted_ms[device] += wasted_ms
        self._wasted_by["repeated" if counted else task.fate] += wasted_ms
        for _, phase in task.drops:
            self._dropped.setdefault(phase, Counter())[device] += 1
        if not entry.train:
            return
        self._tasks_given[device] += 1
        self.fates[task.fate] += 1
        if counted:
            self.counted[device] += 1
        elif task.fate == "not needed":
            self._not_needed[device] += 1
        elif task.fate == "late":
            closed_ms = task.ended_ms if entry.closed_ms is None else entry.closed_ms
            self._late.setdefault(task.phase_at(closed_ms), Counter())[device] += 1

    def _round_ended(self, entry: Round, counted: list[Task]) -> None:
        if not entry.train:
            return
        self.rounds.append(
            RoundFigures(
                round_id=entry.round_id,
                opened_ms=entry.opened_ms,
                closed_ms=entry.closed_ms,
                outcome=entry.outcome,
                counted=len(counted),
                waited_ms=waited_ms(entry, counted),
                download_bytes=self._down_bytes - self._told_down,
                upload_bytes=self._up_bytes - self._told_up,
            )
        )
        self._told_down, self._told_up = self._down_bytes, self._up_bytes


def waited_ms(entry: Round, counted: Sequence[Task]) -> dict[str, int]:
    """Where the time of a round went: what its last counted device was at, then `others`."""
    if entry.closed_ms is None:
        return {}
    waited = dict.fromkeys((*PHASES, "away"), 0)
    last = max(counted, key=lambda task: task.accepted_ms or 0, default=None)
    answered_ms = entry.opened_ms
    if last is not None:
        answered_ms = max(entry.opened_ms, min(last.accepted_ms or 0, entry.closed_ms))
        for phase in PHASES:
            waited[phase] = last.spent_ms(phase, entry.opened_ms, answered_ms)
        waited["away"] = answered_ms - entry.opened_ms - sum(waited.values())
    waited["others"] = entry.closed_ms - answered_ms
    return waited
