"""Whom the coordinator believes: devices in good standing, each on its own topics, each order once.

Who is a member no more is not believed from the next message on, and told nothing.
"""

from __future__ import annotations

from coordinator.marks import Marks
from fedtide.members import Members
from fedtide.objections import NO_MEMBER, UNNUMBERED, replayed
from fedtide.seal import UNORDERED, Sealed
from fedtide.topics import Topics
from fedtide.transport import Transport
from fedtide.trust import device_objection


class MemberTrust:
    """See the module."""

    def __init__(self, topics: Topics, members: Members, marks: Marks, key_set: bytes) -> None:
        """`key_set` is what devices are told on each connection, as the authority has sealed it."""
        self._topics = topics
        self._members = members
        self._marks = marks
        self._key_set = key_set

    def linked(self, link: Transport) -> int | None:
        """Say which keys are in use, before anything that is sealed with them."""
        return link.publish(self._topics.keys, self._key_set, retain=True)

    def objection(self, topic: str, sealed: Sealed) -> str | None:
        """Why it is not the device's, or nothing new."""
        device_id = self._topics.device_of(topic)
        if device_id is None:
            return NO_MEMBER
        objection = device_objection(self._members, device_id, topic, sealed)
        if objection is not None or topic != self._topics.up(device_id):
            return objection
        if sealed.sequence == UNORDERED:
            return UNNUMBERED
        newest = self._marks.advance(sealed.key_id.hex(), sealed.sequence)
        return None if newest is None else replayed(sealed.sequence, newest)

    def key_set_heard(self, raw: bytes) -> str | None:  # noqa: ARG002
        """It is the coordinator's own, and nobody asked for it."""
        return None

    def may_hear(self, topic: str) -> bool:
        """All but devices that are no members."""
        hearer = self._topics.hearer(topic)
        return hearer is None or self._members.key(hearer) is not None
