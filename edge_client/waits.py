"""What this device waits for, said to a person: after two minutes, then ever more rarely.

A link is missed after half a minute; a coordinator that has not answered is noted after 10 s.

Pure: told what is being waited for and the time, it says what is overdue.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from edge_client.session_state import State
from fedtide.messages import Presence

FIRST_MS, REPEAT_MS_MAX = 120_000, 6 * 3_600_000
"""When a wait is first told, and the longest pause between two times."""
LINK_FIRST_MS, NOTICE_MS = 30_000, 10_000
"""When a missing link is first told, and when what has a notice is noted."""
HUNG_TIMES = 6
"""Training that was told this often to make no step, the last time after 64 minutes, hangs."""


class Wait(NamedTuple):
    """One thing that is being waited for."""

    text: str
    progress: Hashable = None
    """While this changes, things go on and the wait begins anew."""
    at_once: bool = False
    """To be told from the beginning (the log hears of it anyway)."""
    first_ms: int = FIRST_MS
    notice: str = ""
    """To be noted once, long before it is overdue."""


class _Running(NamedTuple):
    wait: Wait
    since_ms: int
    due_ms: int
    told: str = ""
    times: int = 0
    noticed: bool = False


class Waits:
    """The waits of one client, by name."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    def observe(self, waits: Mapping[str, Wait], at_ms: int) -> None:
        """These are the waits now."""
        for name in set(self._running) - set(waits):
            del self._running[name]
        for name, wait in waits.items():
            running = self._running.get(name)
            if running is None or running.wait.progress != wait.progress:
                self._running[name] = _Running(wait, at_ms, at_ms + wait.first_ms)
            else:
                self._running[name] = running._replace(wait=wait)

    def deadline_at_ms(self) -> int | None:
        """When to call `noticed` and `overdue`."""
        due_ms = [running.due_ms for running in self._running.values()]
        notices = [
            running.since_ms + NOTICE_MS
            for running in self._running.values()
            if running.wait.notice and not running.noticed
        ]
        return min([*due_ms, *notices], default=None)

    def noticed(self, at_ms: int) -> list[str]:
        """What is to be noted now; nothing is wrong yet."""
        notices = []
        for name, running in sorted(self._running.items()):
            wait = running.wait
            if wait.notice and not running.noticed and running.since_ms + NOTICE_MS <= at_ms:
                self._running[name] = running._replace(noticed=True)
                notices.append(wait.notice)
        return notices

    def overdue(self, at_ms: int) -> list[str]:
        """What is to be told now."""
        told = []
        for name, running in sorted(self._running.items()):
            if running.due_ms <= at_ms:
                waited_ms = at_ms - running.since_ms
                text = f"{running.wait.text} (for {duration(waited_ms)})"
                due_ms = at_ms + min(max(waited_ms, running.wait.first_ms), REPEAT_MS_MAX)
                self._running[name] = running._replace(
                    due_ms=due_ms, told=text, times=running.times + 1
                )
                told.append(text)
        return told

    def told(self) -> list[str]:
        """What has been told and still holds, or is to be told at once."""
        return [
            running.told or running.wait.text
            for _, running in sorted(self._running.items())
            if running.told or running.wait.at_once
        ]

    def texts(self) -> list[str]:
        """Everything that is being waited for."""
        return [running.wait.text for _, running in sorted(self._running.items())]

    def hang(self) -> bool:
        """Whether training has made no step for an hour: a clock that jumps tells it only once."""
        running = self._running.get("training")
        return running is not None and running.times >= HUNG_TIMES


def waits_of(
    state: State, fetching: Wait | None, steps: int, *, unsaved: bool = False
) -> dict[str, Wait]:
    """What a device in this state waits for; waiting for a task is its ordinary life."""
    waits: dict[str, Wait] = {}
    if not state.connected:
        pause = f" {duration(state.retry_ms)} after each failure" if state.retry_ms else ""
        text = f"no link to the broker, trying again{pause}: {state.link_reason}"
        waits["link"] = Wait(text, first_ms=LINK_FIRST_MS)
    elif not state.welcomed and state.coordinator_gone:
        text = (
            f"the coordinator of federation {state.durable.federation!r} has finished, or was "
            "stopped; this device goes on by itself when it is back"
        )
        waits["coordinator"] = Wait(text, notice=text)
    elif not state.welcomed:
        waits["coordinator"] = Wait(
            f"no coordinator of federation {state.durable.federation!r} answers; "
            "it may be off, or the name may be wrong",
            notice=f"no coordinator of federation {state.durable.federation!r} has answered yet; "
            "it may be off, or the name may be wrong; `fedtide doctor` tells more",
        )
    elif state.durable.outbox and not state.transfers_held:
        count = len(state.durable.outbox)
        waits["outbox"] = Wait(
            f"no receipt from the coordinator for {count} in the outbox",
            state.durable.uploading or state.durable.outbox[0].update_id,
        )
    if fetching is not None and state.connected:
        waits["fetching"] = fetching
    if unsaved:
        waits["disk"] = Wait("the disk is full: what was done waits for room", at_once=True)
    elif state.phase == "training" and state.training_held:
        pass  # told below
    elif state.phase == "training" and state.reason:
        waits["held"] = Wait(state.reason, at_once=True)
    elif state.phase == "training":
        waits["training"] = Wait("training has made no step", steps)
    if state.held:  # as its owner wants it: nobody is to be alarmed
        text = f"waits: {state.held}"
        waits["conditions"] = Wait(text, text, at_once=True, first_ms=REPEAT_MS_MAX)
    return waits


def doing(now: Presence, waits: Mapping[str, Wait]) -> str:
    """For whoever looks at this machine: what the client does, or what keeps it from that."""
    label = f"{now.phase} round {now.round_id}" if now.phase != "idle" else now.phase
    missing = [
        waits[name].text for name in ("link", "coordinator", "conditions", "disk") if name in waits
    ]
    return f"{label}: {'; '.join(missing) or now.reason}"


def duration(duration_ms: int) -> str:
    """In words, rounded down."""
    seconds = duration_ms // 1000
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds} s"
