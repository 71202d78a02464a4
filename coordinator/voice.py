"""What the coordinator says: to one device, to all of them, and to people who watch."""

from __future__ import annotations

from itertools import count

from coordinator.round_machine import RoundState
from coordinator.store import Model
from fedtide.messages import Beacon, Status, ToDevice, encode
from fedtide.topics import Topics
from fedtide.transport import Transport

NAMES_MAX = 100
"""Devices named in a status: 64 characters each, twice, fit into the smallest packet we accept."""


class Voice:
    """Messages go out at once, or not at all when there is no link."""

    def __init__(self, link: Transport, topics: Topics, session: str) -> None:
        self._link = link
        self._topics = topics
        self._session = session
        self._message_ids = count(1)

    def say(self, device_id: str, message: ToDevice) -> None:
        """To one device."""
        self._link.publish(self._topics.down(device_id), self._encode(message))

    def beacon(self, *, online: bool) -> int | None:
        """To all devices: here, or going; the message's token."""
        beacon = Beacon(online=online, session=self._session)
        return self._link.publish(self._topics.beacon, self._encode(beacon), retain=True)

    def status(self, state: RoundState, model: Model, rounds_count: int, at_ms: int) -> None:
        """To people: the round, and how good the newest model is."""
        left_ms = 0 if state.deadline_at_ms is None else max(0, state.deadline_at_ms - at_ms)
        status = Status(
            phase=state.phase,
            round_id=state.round_id,
            rounds_count=rounds_count,
            model_version=state.model_version,
            cohort=tuple(member.device_id for member in state.cohort[:NAMES_MAX]),
            accepted=tuple(member.device_id for member in state.accepted()[:NAMES_MAX]),
            deadline_ms=left_ms,
            reason=state.reason[:1000],
            loss=model.judged.loss,
            accuracy=model.judged.accuracy,
        )
        self._link.publish(self._topics.status, self._encode(status), retain=True)

    def _encode(self, message: ToDevice | Status) -> bytes:
        return encode(message, f"{self._session}.{next(self._message_ids)}")
