"""A telling piece of a run: a window of rounds, and a sample of devices that shows every fate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from simulator.fleet import events
from simulator.fleet.events import Event
from simulator.report.summary import RoundFigures
from simulator.report.tasks import Round, Task, Tasks

ROUNDS_LEAST, ROUNDS_MOST = 4, 40
DEVICES_MOST = 24


class Timeline(NamedTuple):
    """What is drawn. Times in virtual milliseconds."""

    from_ms: int
    until_ms: int
    closed: list[tuple[int, int]]
    """Round and when it ended."""
    first_round: int
    last_round: int
    devices: list[int]
    """Rows, from the top."""
    tasks: list[Task]
    """Of these devices."""
    off: list[tuple[int, int, int]]
    """Device, from, until."""


def window(rounds: Sequence[RoundFigures], task_ms: float) -> tuple[int, int] | None:
    """Indices [first, last] of the rounds to show; None: none has closed.

    Those around the round of median length, as it is typical: `ROUNDS_LEAST`, or as many as last
    three times as long as a task of `task_ms` (buffered rounds are shorter than their tasks).
    """
    closed = [i for i, entry in enumerate(rounds) if entry.duration_ms is not None]
    if not closed:
        return None
    by_length = sorted(closed, key=lambda i: rounds[i].duration_ms or 0)
    first = last = by_length[len(by_length) // 2]

    def enough() -> bool:
        count = last - first + 1
        lasts_ms = (rounds[last].closed_ms or 0) - rounds[first].opened_ms
        return count >= ROUNDS_MOST or (count >= ROUNDS_LEAST and lasts_ms >= 3 * task_ms)

    while not enough() and (first > closed[0] or last < closed[-1]):
        if last < closed[-1]:
            last += 1
        if first > closed[0] and not enough():
            first -= 1
    return first, last


def timeline(
    stream: Iterable[Event],
    rounds: Sequence[RoundFigures],
    task_ms: float,
    profiles: Sequence[str],
    *,
    late_counts: bool = False,
) -> Timeline | None:
    """Read the events once more, up to the end of the window; `profiles` [devices].

    `late_counts`: as `Tasks`.
    """
    found = window(rounds, task_ms)
    if found is None:
        return None
    shown = rounds[found[0] : found[1] + 1]
    from_ms, until_ms = shown[0].opened_ms, shown[-1].closed_ms or 0
    tasks: list[Task] = []
    off: list[tuple[int, int, int]] = []
    off_since: dict[int, int] = {}

    def task_ended(task: Task, _round: Round) -> None:
        spans = ((begin, end) for _, begin, end in task.spans)
        drops = ((at_ms, at_ms) for at_ms, _ in task.drops)
        if any(begin < until_ms and end > from_ms for begin, end in (*spans, *drops)):
            tasks.append(task)

    tracker = Tasks(task_ended, late_counts=late_counts)
    # What becomes of late tasks is heard later.
    patience_ms = until_ms + (until_ms - from_ms)
    at_ms = 0
    for event in stream:
        if type(event) is not events.Evaluated:
            at_ms = event.at_ms
        if at_ms > patience_ms:
            break
        if isinstance(event, events.Off):
            off_since.setdefault(event.device, event.at_ms)
        elif isinstance(event, events.On):
            since_ms = off_since.pop(event.device, event.at_ms)
            if event.at_ms > from_ms and since_ms < until_ms:
                off.append((event.device, since_ms, event.at_ms))
        tracker.observe(event)
    tracker.end(at_ms)
    off += [(device, since, until_ms) for device, since in off_since.items() if since < until_ms]
    devices = sample(tasks, profiles)
    rows = set(devices)
    return Timeline(
        from_ms,
        until_ms,
        [(entry.round_id, entry.closed_ms or 0) for entry in shown],
        shown[0].round_id,
        shown[-1].round_id,
        devices,
        [task for task in tasks if task.device in rows],
        [(device, max(begin, from_ms), end) for device, begin, end in off if device in rows],
    )


def sample(tasks: Sequence[Task], profiles: Sequence[str]) -> list[int]:
    """At most `DEVICES_MOST` devices: in turn from every profile and fate, the busiest first.

    Sorted by profile, then by device.
    """
    busy: dict[int, int] = {}
    for task in tasks:
        busy[task.device] = busy.get(task.device, 0) + 1
    kinds: dict[tuple[str, str], list[int]] = {}
    for task in sorted(tasks, key=lambda one: (busy[one.device], -one.device)):
        kinds.setdefault((profiles[task.device], task.fate), []).append(task.device)
    chosen: set[int] = set()
    while len(chosen) < DEVICES_MOST and any(kinds.values()):
        for kind in sorted(kinds):
            left = kinds[kind]
            while left and left[-1] in chosen:
                left.pop()
            if left and len(chosen) < DEVICES_MOST:
                chosen.add(left.pop())
    return sorted(chosen, key=lambda device: (profiles[device], device))
