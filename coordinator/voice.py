"""What the coordinator says: to one device, to all of them, and to people who watch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

import msgspec

from coordinator.round_machine import Member, RoundState
from coordinator.store import Model
from fedtide.limits import DEVICES_MAX, NAMES_MAX, STATUS_BYTES_MAX
from fedtide.messages import Beacon, Problem, Status, ToDevice, encode
from fedtide.topics import Topics
from fedtide.transport import Transport

HeardAt = Callable[[str], int | None]
"""When a device was heard, if it is here."""
PROBLEMS_MAX, PROBLEMS_MS = 10, 60_000
"""One device is told of so many problems in this time."""
UNJUDGED = (
    "nobody has judged the models: no device that took part holds examples out "
    "(data.held_out_fraction in client.toml), and there is no test set ([evaluation] in "
    "coordinator.toml)"
)
_LISTS = ("cohort", "accepted", "declined", "rejected", "quarantined", "heard_ms")


class Voice:
    """Messages go out at once, or not at all when there is no link."""

    def __init__(self, link: Transport, topics: Topics, session: str) -> None:
        self._link = link
        self._topics = topics
        self._session = session
        self._message_ids = count(1)
        self._problems: Counter[str] = Counter()
        self._problems_since_ms = 0

    def say(self, device_id: str, message: ToDevice) -> None:
        """To one device."""
        self._link.publish(self._topics.down(device_id), self._encode(message))

    def problem(self, device_id: str, regarding: str, reason: str) -> None:
        """To one device: its message is unusable.

        Said a few times: whoever sends junk without end does not read. Names cost a liar nothing,
        so that no more of them are remembered than there may be devices.
        """
        if device_id not in self._problems and len(self._problems) >= DEVICES_MAX:
            return
        self._problems[device_id] += 1
        if self._problems[device_id] <= PROBLEMS_MAX:
            self.say(device_id, Problem(regarding, reason[:1000]))

    def time_reached(self, at_ms: int) -> None:
        """Let time pass: problems are told of anew."""
        if at_ms - self._problems_since_ms >= PROBLEMS_MS:
            self._problems_since_ms = at_ms
            self._problems.clear()

    def beacon(self, *, online: bool) -> int | None:
        """To all devices: here, or going; the message's token."""
        beacon = Beacon(online=online, session=self._session)
        return self._link.publish(self._topics.beacon, self._encode(beacon), retain=True)

    def status(
        self,
        state: RoundState,
        model: Model,
        rounds_count: int,
        at_ms: int,
        quarantined: Sequence[str],
        heard_at_ms: HeardAt,
    ) -> None:
        """To people: the round, and how good the newest model is."""
        status = status_of(state, model, rounds_count, at_ms, quarantined, heard_at_ms)
        self._link.publish(self._topics.status, self._encode(status), retain=True)

    def _encode(self, message: ToDevice | Status) -> bytes:
        return encode(message, f"{self._session}.{next(self._message_ids)}")


def doing(state: RoundState, rounds_count: int, *, connected: bool) -> str:
    """For whoever looks at this machine: the round, and what is being waited for."""
    reason = state.reason if connected else "no link to the broker"
    done = f"{state.rounds_done} of {rounds_count} rounds done"
    return f"{state.phase.replace('_', ' ')}, {done}{reason and ': '}{reason}"


def status_of(
    state: RoundState,
    model: Model,
    rounds_count: int,
    at_ms: int,
    quarantined: Sequence[str],
    heard_at_ms: HeardAt,
) -> Status:
    """What people are told; of a fleet of any size it takes at most `STATUS_BYTES_MAX` bytes."""
    answers = {
        answer: [member for member in state.cohort if member.answer == answer]
        for answer in ("accepted", "declined", "rejected")
    }
    cohort = _names(state.cohort)
    heard = [heard_at_ms(name) for name in cohort]
    left_ms = 0 if state.deadline_at_ms is None else max(0, state.deadline_at_ms - at_ms)
    status = Status(
        phase=state.phase,
        round_id=state.round_id,
        rounds_count=rounds_count,
        model_version=state.model_version,
        cohort=cohort,
        accepted=_names(answers["accepted"]),
        deadline_ms=left_ms,
        reason=state.reason[:1000],
        loss=model.judged.loss,
        accuracy=model.judged.accuracy,
        kind=state.kind,
        mode="buffered" if state.buffered else "synchronous",
        rounds_done=state.rounds_done,
        wanted=state.wanted,
        quorum=state.quorum,
        declined=_names(answers["declined"]),
        rejected=_names(answers["rejected"]),
        quarantined=tuple(quarantined[:NAMES_MAX]),
        online_count=len(state.online),
        cohort_count=len(state.cohort),
        accepted_count=len(answers["accepted"]),
        declined_count=len(answers["declined"]),
        rejected_count=len(answers["rejected"]),
        quarantined_count=len(quarantined),
        heard_ms=tuple(None if at is None else max(0, at_ms - at) for at in heard),
    )
    return _fitted(status)


def _names(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(member.device_id for member in members[:NAMES_MAX])


def _fitted(status: Status) -> Status:
    """The same with fewer names, if it is too long with all of them."""
    names_max = NAMES_MAX
    while len(encode(status, "x" * 64)) > STATUS_BYTES_MAX:
        names_max //= 2
        shorter = {name: getattr(status, name)[:names_max] for name in _LISTS}
        status = msgspec.structs.replace(status, **shorter)
    return status
