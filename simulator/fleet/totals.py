"""The sums that a run's progress and its summary begin with, from its events one by one.

Memory is O(devices). What became of each task is followed in `simulator.report.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.fleet import events
from simulator.fleet.events import Event


@dataclass(slots=True)
class Carried:
    """Bytes over the links of all devices, those of broken transfers included."""

    down_bytes: int = 0
    up_bytes: int = 0


class Totals:
    """See the module. `observe` each event in its order."""

    def __init__(self, devices: int) -> None:
        self.at_ms = 0
        """Virtual time of the newest event."""
        self.events = 0
        self.spent = Carried()
        self.tasks = 0
        self.dropped: dict[str, int] = {}
        """Dropouts by phase."""
        self.rounds_done = 0
        self.rounds_abandoned = 0
        self.model_version = 0
        self.model_ms = 0
        """When that version was made."""
        self.invited = [0] * devices
        """To train, by device."""
        self.evaluations: list[events.Evaluated] = []
        self.finished: events.Finished | None = None
        self._trains = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.RoundOpened: self._opened,
            events.Invited: self._invited,
            events.TaskGiven: self._given,
            events.DownloadEnded: self._downloaded,
            events.DroppedOut: self._dropped,
            events.UploadEnded: self._uploaded,
            events.RoundAbandoned: self._abandoned,
            events.ModelMade: self._made,
            events.Evaluated: self._evaluated,
            events.Finished: self._finished,
        }

    def observe(self, event: Event) -> None:
        """This has happened."""
        self.events += 1
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        if not isinstance(event, events.Evaluated):
            self.at_ms = event.at_ms

    def _opened(self, event: events.RoundOpened) -> None:
        self._trains = event.kind == "train"

    def _invited(self, event: events.Invited) -> None:
        if self._trains:
            for device in event.devices:
                self.invited[device] += 1

    def _given(self, _event: events.TaskGiven) -> None:
        self.tasks += 1

    def _downloaded(self, event: events.DownloadEnded) -> None:
        self.spent.down_bytes += event.size_bytes

    def _dropped(self, event: events.DroppedOut) -> None:
        self.dropped[event.phase] = self.dropped.get(event.phase, 0) + 1

    def _uploaded(self, event: events.UploadEnded) -> None:
        self.spent.up_bytes += event.size_bytes

    def _abandoned(self, _event: events.RoundAbandoned) -> None:
        self.rounds_abandoned += 1

    def _made(self, event: events.ModelMade) -> None:
        self.rounds_done += 1
        self.model_version, self.model_ms = event.version, event.at_ms

    def _evaluated(self, event: events.Evaluated) -> None:
        self.evaluations.append(event)

    def _finished(self, event: events.Finished) -> None:
        self.finished = event
