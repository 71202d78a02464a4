"""What this device says: to the coordinator, and to all, on its presence."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from edge_client.session_state import TEXT_CHARS_MAX, State
from edge_client.task_runner import TaskRunner
from fedtide import __version__
from fedtide.failpoints import reach
from fedtide.messages import Chunk, FromDevice, Hello, Presence, encode
from fedtide.topics import Topics
from fedtide.transport import Transport, Will
from fedtide.vectors import ENCODINGS

ANNOUNCE_MS_MIN = 200
"""Presence changes faster than this are told as one: nobody could read them."""


def will_of(topics: Topics, device_id: str) -> Will:
    """What the broker says when this device vanishes."""
    return Will(topics.presence(device_id), encode(Presence(False, "offline"), "will"))


def hello_of(runner: TaskRunner, state: State, holds: Iterable[str]) -> Hello:
    """What this device can, has done, and has of the blobs that it was told of (digests)."""
    durable = state.durable
    return Hello(
        version=__version__,
        runtimes=runner.runtimes,
        examples=runner.examples_count,
        encodings=tuple(ENCODINGS),
        holds=tuple(holds),
        owes=tuple(update.update_id for update in durable.outbox),
        installation=durable.installation,
        unready=state.held[:TEXT_CHARS_MAX],
    )


class Speaking:
    """See the module."""

    def __init__(self, link: Transport, topics: Topics, device_id: str) -> None:
        self._link = link
        self._up = topics.up(device_id)
        self._presence_topic = topics.presence(device_id)
        self._message_ids = count(1)
        self._presence: Presence | None = None
        self._announced_at_ms = 0
        self._announce_due = False

    def publish(self, message: FromDevice) -> int | None:
        """Say this to the coordinator; the token of its delivery, None: there is no link."""
        if isinstance(message, Chunk):
            reach("client: chunk sent")
        return self._link.publish(self._up, encode(message, f"{next(self._message_ids)}"))

    def link_up(self, at_ms: int) -> None:
        """Nothing has been announced on this link."""
        self._presence = None
        self._announced_at_ms = at_ms - ANNOUNCE_MS_MIN

    def announce(self, now: Presence, at_ms: int, *, connected: bool) -> None:
        """Publish what this device is doing, if it changed, and not too often."""
        self._announce_due = connected and now != self._presence
        if self._announce_due and at_ms >= self._announced_at_ms + ANNOUNCE_MS_MIN:
            self._presence, self._announced_at_ms, self._announce_due = now, at_ms, False
            payload = encode(now, f"{next(self._message_ids)}")
            self._link.publish(self._presence_topic, payload, retain=True)

    def deadline_at_ms(self) -> int | None:
        """When to announce again."""
        return self._announced_at_ms + ANNOUNCE_MS_MIN if self._announce_due else None

    def goodbye(self, reason: str) -> int | None:
        """Say that this device goes away; the token of its delivery, None: there is no link."""
        payload = encode(Presence(False, "offline", reason=reason), "bye")
        return self._link.publish(self._presence_topic, payload, retain=True)
