"""What the round machine knows, hears and orders: its state, its events, its commands. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter
from typing import Literal

from msgspec import Struct

from coordinator.config import RoundsConfig
from fedtide.messages import Kind

Phase = Literal["waiting", "collecting", "aggregating", "backing_off", "finished"]
Answer = Literal["none", "silent", "accepted", "rejected", "declined"]
"""`silent`: lost its place to another (buffered mode), but its update is still welcome."""


class Member(Struct, frozen=True, omit_defaults=True):
    """One task that was given to a device, and its answer."""

    device_id: str
    answer: Answer = "none"
    update_id: str = ""
    round_id: int = 0
    """Of the task: the round that was open when it was given."""
    version: int = 0
    """Of the model that the task starts from."""
    deadline_at_ms: int = 0
    """When the device loses its place; only in the buffered mode."""


class RoundState(Struct, frozen=True, omit_defaults=True):
    """Everything the machine knows; digests and names, never arrays.

    Each answer writes all of it again. What is as by default is not written, so that a default
    that changes changes what lies in stores.
    """

    phase: Phase = "waiting"
    round_id: int = 0
    """The newest round that was opened; 0 before the first."""
    kind: Kind = "train"
    rounds_done: int = 0
    """Training rounds that succeeded."""
    judged: bool = False
    """Whether the devices have been asked to evaluate the newest model."""
    model_version: int = 0
    """The newest global model; 0 is the initial one."""
    wanted: int = 0
    quorum: int = 0
    """Of the open round, whatever the configuration says by now."""
    cohort: tuple[Member, ...] = ()
    """Tasks of the open round; in the buffered mode also those of earlier ones still at work."""
    deadline_at_ms: int | None = None
    abandoned_in_a_row: int = 0
    online: tuple[str, ...] = ()
    """Devices that can be invited, sorted."""
    reason: str = "no device has said hello yet"
    """What is being waited for."""
    buffered: bool = False
    """The mode of the open round."""
    idle: bool = False
    """Buffered: nobody is at work or free, and `deadline_at_ms` says how long that may be."""
    carried: tuple[Member, ...] = ()
    """Accepted updates of earlier tasks that count in the open round, or in the next."""
    stragglers: tuple[Member, ...] = ()
    """Where late updates count: still at work on earlier rounds. A new task would make them drop
    that work, so they are not asked again as long as there are others."""

    def is_online(self, device_id: str) -> bool:
        """Whether a device can be invited."""
        return _is_in(self.online, device_id)

    def accepted(self) -> tuple[Member, ...]:
        """Members whose update counts, by device and task: the order of aggregation."""
        return tuple(
            sorted((m for m in self.cohort if m.answer == "accepted"), key=_order_of_aggregation)
        )

    def at_work(self) -> tuple[Member, ...]:
        """Members whose answer is waited for."""
        return tuple(member for member in self.cohort if member.answer == "none")

    def member(self, device_id: str, round_id: int | None = None) -> Member | None:
        """The cohort's entry for a device's task; None: of the open round."""
        place = self.place_of(device_id, self.round_id if round_id is None else round_id)
        return None if place is None else self.cohort[place]

    def place_of(self, device_id: str, round_id: int) -> int | None:
        """Of a device's task in the cohort; None: it is not there."""
        cohort = self.cohort
        if self.phase == "collecting" and not self.buffered:  # sorted, as it was drawn
            place = bisect_left(cohort, device_id, key=_device_of)
            found = range(place, min(place + 1, len(cohort)))
        else:
            found = range(len(cohort))
        for place in found:
            member = cohort[place]
            if member.device_id == device_id and member.round_id == round_id:
                return place
        return None

    def task_of(self, device_id: str) -> Member | None:
        """The task that a device is at work on."""
        if self.phase == "collecting" and not self.buffered:
            member = self.member(device_id)
            return member if member is not None and member.answer == "none" else None
        return next((m for m in self.at_work() if m.device_id == device_id), None)

    def ready(self) -> tuple[Member, ...]:
        """Every update that would count if the round closed now."""
        carried = self.carried if self.kind == "train" else ()
        return tuple(sorted((*self.accepted(), *carried), key=_order_of_aggregation))

    def devices_ready(self) -> int:
        """How many devices have an update that counts: what the quorum is about."""
        return len({member.device_id for member in self.ready()})


_device_of = attrgetter("device_id")


def _order_of_aggregation(member: Member) -> tuple[str, int]:
    return member.device_id, member.round_id


def _is_in(names: tuple[str, ...], name: str) -> bool:
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name


def with_name(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Sorted names and this one."""
    place = bisect_left(names, name)
    return names if _is_in(names, name) else (*names[:place], name, *names[place:])


def without_name(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Sorted names but for this one."""
    place = bisect_left(names, name)
    return (*names[:place], *names[place + 1 :]) if _is_in(names, name) else names


def few(device_ids: Sequence[str], count: int | None = None) -> str:
    """A handful of them, for people. `count`: how many there are, if these are only the first."""
    count = len(device_ids) if count is None else count
    return ", ".join(device_ids[:5]) + (f" … ({count})" if count > 5 else "")


def unwelcome(
    state: RoundState,
    config: RoundsConfig,
    device_id: str,
    round_id: int,
    version: int,
    kind: Kind = "train",
) -> str:
    """Why an update of this task, which starts from model `version`, cannot count; empty: it can.

    The one place that says so: vetting asks before it asks for content, the machine again.
    """
    member = state.member(device_id, round_id)
    if round_id > state.round_id:
        return f"round {round_id} has not been opened"
    collecting = state.phase == "collecting"
    if collecting and round_id == state.round_id and member is None:
        return f"{device_id} was not invited to round {round_id}"
    if member is not None and member.answer not in ("none", "silent"):
        return f"{device_id} has already answered round {round_id}"
    if not (collecting and member is not None):
        if kind == "evaluate":
            return "late: the evaluation has ended"
        if not config.late_counts:
            return f"late: round {round_id} has closed"
        if state.rounds_done + (state.phase == "aggregating") >= config.count:
            return f"late: round {round_id} has closed, and training has ended"
        if any(m.device_id == device_id for m in state.carried):
            return f"late: round {round_id} has closed, and another late update is waiting"
    staleness = state.model_version + (state.phase == "aggregating") - version
    if staleness > config.staleness_max:
        return f"too stale: it is {staleness} models behind, at most {config.staleness_max} count"
    return ""


class Restarted(Struct, frozen=True, tag=True):
    """The coordinator has just started; nobody is known to be online."""


class DeviceArrived(Struct, frozen=True, tag=True):
    """A device said hello."""

    device_id: str


class DeviceLeft(Struct, frozen=True, tag=True):
    """A device said goodbye, or its will did, or it has been silent for too long."""

    device_id: str


class UpdateAccepted(Struct, frozen=True, tag=True):
    """An update passed vetting and is on disk."""

    round_id: int
    """Of its task."""
    device_id: str
    update_id: str
    version: int = 0
    """Of the model that it starts from."""


class UpdateRejected(Struct, frozen=True, tag=True):
    """An update failed vetting."""

    round_id: int
    device_id: str


class TaskDeclined(Struct, frozen=True, tag=True):
    """A device cannot do the task."""

    round_id: int
    device_id: str
    reason: str = ""
    """For people who read the log of events."""


class TimeReached(Struct, frozen=True, tag=True):
    """The clock has passed `deadline_at_ms`."""


class RoundAggregated(Struct, frozen=True, tag=True):
    """The aggregate of this round is on disk."""

    round_id: int


class AggregationFailed(Struct, frozen=True, tag=True):
    """No usable model comes out of this round's updates."""

    round_id: int
    reason: str


Event = (
    Restarted
    | DeviceArrived
    | DeviceLeft
    | UpdateAccepted
    | UpdateRejected
    | TaskDeclined
    | TimeReached
    | RoundAggregated
    | AggregationFailed
)


class InviteDevices(Struct, frozen=True):
    """Send each of these devices the task that it is to be at work on."""

    device_ids: tuple[str, ...]


class AggregateRound(Struct, frozen=True):
    """Make the next global model (or, after an evaluation, its metrics) from these updates."""

    round_id: int
    kind: Kind
    update_ids: tuple[str, ...]


class AbandonRound(Struct, frozen=True):
    """Record that the round came to nothing, and why."""

    round_id: int
    reason: str


class FinishFederation(Struct, frozen=True):
    """All rounds are done, or no more will be tried."""

    reason: str
    succeeded: bool


Command = InviteDevices | AggregateRound | AbandonRound | FinishFederation
