"""What is known of a federation from its retained messages: coordinator, round and devices. Pure.

A retained message may be as old as it likes: durations in one are exact only if it was seen to
come. `Picture.hear` takes what arrives, `Picture.snapshot` says what is known at a moment.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import Struct

from fedtide.limits import DEVICES_MAX
from fedtide.messages import Beacon, Envelope, Presence, Status, decode
from fedtide.topics import Topics, is_identifier

OTHERS_MAX = 100
"""Federations of other names that are remembered."""


Verified = Literal["nothing", "coordinator", "everything"]
"""Whose messages were believed only with a valid seal."""


class DeviceNow(Struct, frozen=True):
    """One device."""

    device: str
    phase: str
    """`unknown`: it has said nothing that is retained."""
    doing: str
    """Progress, or what it waits for, in its own words."""
    round_id: int
    invited: bool
    answer: str
    """To the open round's task: none, accepted, declined, rejected."""
    quarantined: bool
    heard_ms: int | None
    """Since it was heard; None: unknown."""
    heard_at_least: bool
    """It may be longer ago."""


class Snapshot(Struct, frozen=True):
    """What is known at a moment."""

    federation: str
    coordinator: Literal["online", "offline", "unknown"]
    status: Status | None
    deadline_ms: int | None
    deadline_at_most: bool
    """It may be sooner: nobody knows how old the status is."""
    devices: tuple[DeviceNow, ...]
    others: tuple[str, ...]
    """Federations of other names that have, or had, a coordinator at this broker."""
    verified: Verified
    refused_count: int
    """Messages that were left out, because their seal is not valid."""
    refused_newest: str
    """Of the newest: topic and reason."""


class _Heard(NamedTuple):
    presence: Presence
    at_ms: int
    retained: bool


class Picture:
    """See the module."""

    def __init__(self, federation: str, verified: Verified = "nothing") -> None:
        self._topics = Topics(federation)
        self._verified = verified
        self._refused_count = 0
        self._refused_newest = ""
        self._beacon: Beacon | None = None
        self._status: Status | None = None
        self._status_at_ms = 0
        self._status_retained = False
        self._heard: dict[str, _Heard] = {}
        self._others: set[str] = set()

    def filters(self) -> list[str]:
        """What to subscribe to."""
        root = self._topics
        return [root.beacon, root.status, root.presence("+"), Topics("+").beacon]

    @property
    def empty(self) -> bool:
        """Nothing was heard of this federation."""
        return self._beacon is None and self._status is None and not self._heard

    def hear(self, topic: str, payload: bytes, at_ms: int, *, retained: bool) -> None:
        """A message came."""
        device_id = self._topics.device_of(topic)
        if not payload and device_id is not None:
            if topic == self._topics.presence(device_id) and retained:
                self._heard.pop(device_id, None)
            return
        envelope = decode(payload)
        body = envelope.body if isinstance(envelope, Envelope) else None
        match body:
            case Beacon() if topic == self._topics.beacon:
                self._beacon = body
            case Beacon():
                self._other(topic)
            case Status() if topic == self._topics.status:
                self._status, self._status_at_ms = body, at_ms
                self._status_retained = retained
            case Presence() if device_id is not None:
                if device_id in self._heard or len(self._heard) < DEVICES_MAX:
                    self._heard[device_id] = _Heard(body, at_ms, retained)
            case _:
                pass

    def refuse(self, topic: str, reason: str) -> None:
        """A message came whose seal is not valid."""
        self._refused_count += 1
        self._refused_newest = f"{topic.removeprefix(f'{self._topics.root}/')}: {reason}"

    def _other(self, topic: str) -> None:
        parts = topic.split("/")
        if len(parts) == 4 and is_identifier(parts[2]) and len(self._others) < OTHERS_MAX:
            self._others.add(parts[2])

    def presence(self, device_id: str) -> Presence | None:
        """What a device said last of itself."""
        heard = self._heard.get(device_id)
        return None if heard is None else heard.presence

    def device_ids(self) -> tuple[str, ...]:
        """Devices that have said something of themselves, sorted."""
        return tuple(sorted(self._heard))

    def snapshot(self, at_ms: int) -> Snapshot:
        """What is known now."""
        status, left = self._status, None
        if status is not None and status.deadline_ms:
            left = max(0, status.deadline_ms - (at_ms - self._status_at_ms))
        coordinator: Literal["online", "offline", "unknown"] = "unknown"
        if self._beacon is not None:
            coordinator = "online" if self._beacon.online else "offline"
        named = () if status is None else (*status.cohort, *status.quarantined)
        devices = sorted({*self._heard, *named})
        return Snapshot(
            federation=self._topics.federation,
            coordinator=coordinator,
            status=status,
            deadline_ms=left,
            deadline_at_most=self._status_retained,
            devices=tuple(self._device(name, at_ms) for name in devices),
            others=tuple(sorted(self._others)),
            verified=self._verified,
            refused_count=self._refused_count,
            refused_newest=self._refused_newest,
        )

    def _device(self, name: str, at_ms: int) -> DeviceNow:
        status = self._status or Status()
        heard = self._heard.get(name)
        presence = None if heard is None else heard.presence
        answers = [
            kind for kind in ("accepted", "declined", "rejected") if name in _of(kind, status)
        ]
        heard_ms, at_least = self._since(name, at_ms)
        return DeviceNow(
            device=name,
            phase="unknown" if presence is None else presence.phase,
            doing="" if presence is None else presence.reason,
            round_id=0 if presence is None else presence.round_id,
            invited=name in status.cohort,
            answer=answers[0] if answers else "none",
            quarantined=name in status.quarantined,
            heard_ms=heard_ms,
            heard_at_least=at_least,
        )

    def _since(self, name: str, at_ms: int) -> tuple[int | None, bool]:
        """How long ago a device was heard, by us or by the coordinator."""
        known: list[tuple[int, bool]] = []
        heard, status = self._heard.get(name), self._status
        if heard is not None and not heard.retained and heard.presence.online:
            known.append((at_ms - heard.at_ms, False))
        if status is not None and name in status.cohort and len(status.heard_ms):
            told = dict(zip(status.cohort, status.heard_ms, strict=False)).get(name)
            if told is not None:
                known.append((told + at_ms - self._status_at_ms, self._status_retained))
        exact = [entry for entry in known if not entry[1]]
        return min(exact or known, default=(None, False))


def _of(kind: str, status: Status) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(status, kind)
    return names
