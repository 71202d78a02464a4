"""The tasks of a run, from its events one by one: what each went through and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import msgspec

from coordinator.config import RoundsConfig
from simulator.fleet import events
from simulator.fleet.events import Event
from simulator.fleet.record import Header

Phase = Literal["download", "training", "upload"]
Fate = Literal[
    "counted", "dropped", "late", "not needed", "declined", "rejected", "abandoned", "unfinished"
]
"""`dropped`: also of a device that came back too late, or never. `not needed`: on its way when its
round closed with enough others (over-selection). `abandoned`: accepted, by a round that came to
nothing. `unfinished`: training ended while it could still have counted."""
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(slots=True)
class Task:
    """What a device was asked to do, once. Times in virtual milliseconds."""

    device: int
    round_id: int
    given_ms: int
    spans: list[tuple[Phase, int, int]] = field(default_factory=list)
    """Phase, from, until."""
    phase: Phase | None = None
    """What it is at, since `since_ms`."""
    since_ms: int = 0
    drops: list[tuple[int, str]] = field(default_factory=list)
    """When, and in which phase, it failed; it may have gone on later."""
    lost_ms: int = 0
    """Of the training: on epochs that had to be done again."""
    accepted_ms: int | None = None
    ended_ms: int = 0
    fate: Fate = "unfinished"

    def begin(self, phase: Phase, at_ms: int) -> None:
        """Go over to a phase."""
        self.pause(at_ms)
        self.phase, self.since_ms = phase, at_ms

    def pause(self, at_ms: int) -> None:
        """End the phase it is at, if any."""
        if self.phase is not None:
            self.spans.append((self.phase, self.since_ms, at_ms))
            self.phase = None

    def spent_ms(self, phase: Phase, from_ms: int = 0, until_ms: int = 2**63) -> int:
        """Time in a phase, within an interval."""
        return sum(
            max(0, min(end, until_ms) - max(begin, from_ms))
            for name, begin, end in self.spans
            if name == phase
        )

    def phase_at(self, at_ms: int) -> Phase | Literal["away"]:
        """What it was at; away: none of the phases."""
        return next((name for name, begin, end in self.spans if begin <= at_ms < end), "away")


@dataclass(slots=True)
class Round:
    """One round, open or closed."""

    round_id: int
    train: bool
    opened_ms: int
    wanted: int
    closed_ms: int | None = None
    outcome: Literal["open", "enough", "answered", "deadline", "abandoned"] = "open"
    """`answered` and `deadline`: fewer updates than it wanted, as nobody was at work any more, or
    the time was over."""
    ended: bool = False


def may_count_late(header: Header) -> bool:
    """Whether this policy counts an update whose round has closed, until training ends."""
    scenario = header.scenario
    rules = dict(scenario.get("rounds", {}))
    for policy in scenario.get("policy", ()):
        if policy["name"] == header.policy:
            rules |= policy.get("rounds", {})
    known = {key: rules[key] for key in ("mode", "late") if key in rules}
    return msgspec.convert(known, RoundsConfig).late_counts


TaskEnded = Callable[[Task, Round], None]
RoundEnded = Callable[[Round, list[Task]], None]


class Tasks:
    """Hears events in their order and says what became of each task and round.

    Memory: O(tasks at work + rounds).
    """

    def __init__(
        self,
        task_ended: TaskEnded,
        round_ended: RoundEnded = lambda _round, _tasks: None,
        *,
        late_counts: bool = False,
    ) -> None:
        """`round_ended` gets the round and the tasks whose updates are in its model.

        `late_counts`: an update can count after its round has closed (`may_count_late`).
        """
        self._late_counts = late_counts
        self._task_ended = task_ended
        self._round_ended = round_ended
        self._open: dict[int, dict[int, Task]] = {}
        self._current: dict[int, Task] = {}
        self._rounds: dict[int, Round] = {}
        self._in_work: tuple[events.Counted, ...] = ()
        self._handlers: dict[type, Callable[..., None]] = {
            events.Off: self._off,
            events.RoundOpened: self._opened,
            events.TaskGiven: self._given,
            events.DownloadBegan: self._downloading,
            events.DownloadEnded: self._downloaded,
            events.TrainingBegan: self._training,
            events.TrainingEnded: self._trained,
            events.GivenUp: self._given_up,
            events.Declined: self._declined,
            events.DroppedOut: self._dropped,
            events.UploadBegan: self._uploading,
            events.UploadEnded: self._uploaded,
            events.Verdict: self._verdict,
            events.RoundClosed: self._closed,
            events.ModelMade: self._made,
            events.RoundAbandoned: self._abandoned,
        }

    def observe(self, event: Event) -> None:
        """This has happened."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def end(self, at_ms: int) -> None:
        """Nothing more comes: what is open came to nothing."""
        for task in [task for tasks in self._open.values() for task in tasks.values()]:
            closed = self._rounds[task.round_id].closed_ms is not None
            # Where its round was still open, nobody knows whether it would have come in time.
            fate = self._too_late(task, ended=True) if closed else "unfinished"
            self._finish(task, at_ms, fate)
        for entry in self._rounds.values():
            if not entry.ended:
                self._round_ended(entry, [])

    def _task(self, device: int, round_id: int) -> Task | None:
        tasks = self._open.get(device)
        return None if tasks is None else tasks.get(round_id)

    def _finish(self, task: Task, at_ms: int, fate: Fate) -> None:
        task.pause(at_ms)
        task.ended_ms, task.fate = at_ms, fate
        del self._open[task.device][task.round_id]
        if self._current.get(task.device) is task:
            del self._current[task.device]
        self._task_ended(task, self._rounds[task.round_id])

    def _too_late(self, task: Task, reason: str = "", *, ended: bool = False) -> Fate:
        """The fate of a task that did not make it into a model, by the coordinator's reason."""
        entry = self._rounds[task.round_id]
        if any(entry.closed_ms is None or at_ms <= entry.closed_ms for at_ms, _ in task.drops):
            return "dropped"  # it came back, but too late, or never
        if (ended and self._late_counts) or reason.endswith("training has ended"):
            return "unfinished"  # with more time it would have counted
        enough = entry.outcome == "enough" and not reason.startswith("too stale")
        return "not needed" if enough else "late"

    def _opened(self, event: events.RoundOpened) -> None:
        self._rounds[event.round_id] = Round(
            event.round_id, event.kind == "train", event.at_ms, event.wanted
        )

    def _given(self, event: events.TaskGiven) -> None:
        task = Task(event.device, event.round_id, event.at_ms)
        self._open.setdefault(event.device, {})[event.round_id] = task
        self._current[event.device] = task

    def _given_up(self, event: events.GivenUp) -> None:
        task = self._task(event.device, event.round_id)
        if task is not None:
            self._finish(task, event.at_ms, self._too_late(task))

    def _declined(self, event: events.Declined) -> None:
        task = self._task(event.device, event.round_id)
        if task is not None:
            self._finish(task, event.at_ms, "declined")

    def _off(self, event: events.Off) -> None:
        for task in self._open.get(event.device, {}).values():
            task.pause(event.at_ms)

    def _downloading(self, event: events.DownloadBegan) -> None:
        task = self._current.get(event.device)
        if task is not None:
            task.begin("download", event.at_ms)

    def _downloaded(self, event: events.DownloadEnded) -> None:
        task = self._current.get(event.device)
        if task is not None and task.phase == "download":
            task.pause(event.at_ms)

    def _training(self, event: events.TrainingBegan) -> None:
        task = self._task(event.device, event.round_id)
        if task is not None:
            task.begin("training", event.at_ms)

    def _trained(self, event: events.TrainingEnded) -> None:
        task = self._task(event.device, event.round_id)
        if task is not None:
            task.pause(event.at_ms)
            task.lost_ms += event.lost_ms

    def _dropped(self, event: events.DroppedOut) -> None:
        task = self._task(event.device, event.round_id)
        if task is None:
            return
        task.pause(event.at_ms)
        task.drops.append((event.at_ms, event.phase))
        if not event.returns:
            self._finish(task, event.at_ms, "dropped")

    def _uploading(self, event: events.UploadBegan) -> None:
        task = self._task(event.device, event.round_id)
        if task is not None:
            task.begin("upload", event.at_ms)

    def _uploaded(self, event: events.UploadEnded) -> None:
        task = self._task(event.device, event.round_id)
        if task is not None and task.phase == "upload":
            task.pause(event.at_ms)

    def _verdict(self, event: events.Verdict) -> None:
        task = self._task(event.device, event.round_id)
        if task is None:
            return
        if event.verdict == "accepted":
            task.accepted_ms = event.at_ms
        elif event.verdict == "rejected":
            self._finish(task, event.at_ms, "rejected")
        else:
            self._finish(task, event.at_ms, self._too_late(task, event.reason))

    def _closed(self, event: events.RoundClosed) -> None:
        entry = self._rounds[event.round_id]
        entry.closed_ms = event.at_ms
        enough = len(event.parts) >= entry.wanted
        entry.outcome = event.why or ("enough" if enough else "deadline")
        self._in_work = event.parts
        if not entry.train:
            self._count(entry, event.at_ms)

    def _made(self, event: events.ModelMade) -> None:
        self._count(self._rounds[event.round_id], event.at_ms)

    def _count(self, entry: Round, at_ms: int) -> None:
        parts = [self._task(part.device, part.round_id) for part in self._in_work]
        self._in_work = ()
        counted = [task for task in parts if task is not None]
        for task in counted:
            self._finish(task, at_ms, "counted")
        entry.ended = True
        self._round_ended(entry, counted)

    def _abandoned(self, event: events.RoundAbandoned) -> None:
        entry = self._rounds[event.round_id]
        entry.closed_ms, entry.outcome = event.at_ms, "abandoned"
        self._in_work = ()
        for device, round_id in event.lost:
            task = self._task(device, round_id)
            if task is not None:
                self._finish(task, event.at_ms, "abandoned")
        entry.ended = True
        self._round_ended(entry, [])
