"""Devices that are revoked while a round waits for them.

Their connection is cut and nothing that they say is believed, so they cannot decline: this is done
for them.
"""

from __future__ import annotations

import logging

from coordinator.round_state import DeviceLeft, Event, RoundState, TaskDeclined
from fedtide.members import Members

REVOKED = "revoked"
"""Why the task of such a device counts as declined."""
LOOK_MS = 2_000
_log = logging.getLogger(__name__)


class Revocations:
    """See the module. Where there is no list of members nobody is revoked."""

    def __init__(self, members: Members | None) -> None:
        self._members = members
        self._look_at_ms = 0

    def deadline_at_ms(self, state: RoundState) -> int | None:
        """When to ask for `events`."""
        waits = self._members is not None and state.phase == "collecting"
        return self._look_at_ms if waits else None

    def events(self, state: RoundState, at_ms: int) -> list[Event]:
        """What becomes of those at work who are members no more."""
        look_at_ms = self.deadline_at_ms(state)
        if self._members is None or look_at_ms is None or at_ms < look_at_ms:
            return []
        self._look_at_ms = at_ms + LOOK_MS
        events: list[Event] = []
        for member in state.at_work():
            if self._members.has_revoked(member.device_id):
                name, number = member.device_id, member.round_id
                _log.warning("%s is revoked: round %d waits for it no more", name, number)
                events += [DeviceLeft(name), TaskDeclined(number, name, REVOKED)]
        return events
