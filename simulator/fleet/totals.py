"""The sums that a summary needs, from the events of a run one by one. Memory is O(devices).

Work is device time spent in training. It is useful when its update is in a model; wasted when its
task was dropped, declined, given up, discarded, rejected, lost, or not done when the run ended, and
where an epoch had to be done again. Until its fate is known it is neither. What is downloaded while
there is no task (the bundle, a model ahead of its round) is neither for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.fleet import events
from simulator.fleet.events import Event


@dataclass(slots=True)
class Cost:
    """What has gone into something."""

    work_ms: int = 0
    down_bytes: int = 0
    up_bytes: int = 0

    def add(self, other: Cost) -> None:
        """Another's on top."""
        self.work_ms += other.work_ms
        self.down_bytes += other.down_bytes
        self.up_bytes += other.up_bytes


class Totals:
    """See the module. `observe` each event in its order."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.at_ms = 0
        """Virtual time of the newest event."""
        self.events = 0
        self.spent = Cost()
        """Everything that was worked and carried."""
        self.useful = Cost()
        """Of the tasks whose update is in a model."""
        self.wasted = Cost()
        """Of the tasks of which nothing came."""
        self.tasks = 0
        self.declined = 0
        self.dropped: dict[str, int] = {}
        """Dropouts by phase."""
        self.verdicts: dict[str, int] = {}
        """By verdict and name, as "accepted: in time"."""
        self.rounds_done = 0
        self.rounds_abandoned = 0
        self.model_version = 0
        self.model_ms = 0
        """When that version was made."""
        self.invited = [0] * devices
        self.counted = [0] * devices
        """Training tasks and updates in models, by device: who is asked, who is heard."""
        self.evaluations: list[events.Evaluated] = []
        self.finished: events.Finished | None = None
        self._tasks: dict[int, dict[int, Cost]] = {}
        self._current: dict[int, int] = {}
        self._began_ms: dict[int, int] = {}
        self._kind = ""
        self._in_work: tuple[events.Counted, ...] = ()
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.Invited: self._invited,
            events.TaskGiven: self._given,
            events.DownloadEnded: self._downloaded,
            events.TrainingBegan: self._training,
            events.TrainingEnded: self._trained,
            events.GivenUp: self._given_up,
            events.Declined: self._declined,
            events.DroppedOut: self._dropped,
            events.UploadEnded: self._uploaded,
            events.Verdict: self._verdict,
            events.RoundOpened: self._opened,
            events.RoundClosed: self._closed,
            events.RoundAbandoned: self._abandoned,
            events.ModelMade: self._made,
            events.Evaluated: self._evaluated,
            events.Finished: self._finished,
        }

    @property
    def open(self) -> Cost:
        """Neither useful nor wasted; at the end, what was downloaded ahead of tasks."""
        known = self.useful, self.wasted
        return Cost(
            self.spent.work_ms - sum(cost.work_ms for cost in known),
            self.spent.down_bytes - sum(cost.down_bytes for cost in known),
            self.spent.up_bytes - sum(cost.up_bytes for cost in known),
        )

    def observe(self, event: Event) -> None:
        """This has happened."""
        self.events += 1
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        if not isinstance(event, events.Evaluated):
            self.at_ms = event.at_ms

    def _invited(self, event: events.Invited) -> None:
        if self._kind == "train":
            for device in event.devices:
                self.invited[device] += 1

    def _given(self, event: events.TaskGiven) -> None:
        self.tasks += 1
        self._tasks.setdefault(event.device, {})[event.round_id] = Cost()
        self._current[event.device] = event.round_id

    def _cost(self, device: int, round_id: int) -> Cost | None:
        tasks = self._tasks.get(device)
        return None if tasks is None else tasks.get(round_id)

    def _end(self, device: int, round_id: int, side: Cost) -> None:
        """The fate of a task is known."""
        cost = self._tasks.get(device, {}).pop(round_id, None)
        if cost is not None:
            side.add(cost)

    def _downloaded(self, event: events.DownloadEnded) -> None:
        self.spent.down_bytes += event.size_bytes
        cost = self._cost(event.device, self._current.get(event.device, 0))
        if cost is not None:
            cost.down_bytes += event.size_bytes

    def _training(self, event: events.TrainingBegan) -> None:
        self._began_ms[event.device] = event.at_ms

    def _trained(self, event: events.TrainingEnded) -> None:
        took_ms = event.at_ms - self._began_ms.pop(event.device, event.at_ms)
        self.spent.work_ms += took_ms
        cost = self._cost(event.device, event.round_id)
        self.wasted.work_ms += event.lost_ms
        if cost is not None:
            cost.work_ms += took_ms - event.lost_ms

    def _declined(self, event: events.Declined) -> None:
        self.declined += 1
        self._end(event.device, event.round_id, self.wasted)

    def _given_up(self, event: events.GivenUp) -> None:
        self._end(event.device, event.round_id, self.wasted)

    def _dropped(self, event: events.DroppedOut) -> None:
        self.dropped[event.phase] = self.dropped.get(event.phase, 0) + 1
        if not event.returns:
            self._end(event.device, event.round_id, self.wasted)

    def _uploaded(self, event: events.UploadEnded) -> None:
        self.spent.up_bytes += event.size_bytes
        cost = self._cost(event.device, event.round_id)
        if cost is not None:
            cost.up_bytes += event.size_bytes

    def _verdict(self, event: events.Verdict) -> None:
        name = f"{event.verdict}: {event.name}"
        self.verdicts[name] = self.verdicts.get(name, 0) + 1
        if event.verdict != "accepted":
            self._end(event.device, event.round_id, self.wasted)

    def _opened(self, event: events.RoundOpened) -> None:
        self._kind = event.kind

    def _closed(self, event: events.RoundClosed) -> None:
        self._in_work = event.parts
        if self._kind == "evaluate":
            self._count()

    def _made(self, event: events.ModelMade) -> None:
        self.rounds_done += 1
        self.model_version, self.model_ms = event.version, event.at_ms
        for part in self._in_work:
            self.counted[part.device] += 1
        self._count()

    def _count(self) -> None:
        for part in self._in_work:
            self._end(part.device, part.round_id, self.useful)
        self._in_work = ()

    def _abandoned(self, event: events.RoundAbandoned) -> None:
        self.rounds_abandoned += 1
        self._in_work = ()
        for device, round_id in event.lost:
            self._end(device, round_id, self.wasted)

    def _evaluated(self, event: events.Evaluated) -> None:
        self.evaluations.append(event)

    def _finished(self, event: events.Finished) -> None:
        self.finished = event
        for tasks in self._tasks.values():
            for cost in tasks.values():
                self.wasted.add(cost)
        self._tasks.clear()
