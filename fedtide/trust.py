"""Who may say what: whose seal a receiver believes on which topic (protocol §12).

What is said on the coordinator's topics is sealed with a key of the key set, a device's own topics
with its registered key, the key set itself with the authority's.
"""

from __future__ import annotations

import logging
from typing import Protocol

from fedtide.errors import StateError
from fedtide.identity import Identity
from fedtide.key_set import open_key_set
from fedtide.keys import key_id, public_bytes
from fedtide.members import Members
from fedtide.objections import BROKEN, NO_AUTHORITY, NO_MEMBER, NOT_KEPT, OF_ANOTHER, STALE, UNKNOWN
from fedtide.seal import Sealed, is_sealed_by
from fedtide.topics import Topics
from fedtide.transport import Transport

_log = logging.getLogger(__name__)


class Trust(Protocol):
    """What a receiver makes of a sealed message, in the thread that brings it."""

    def linked(self, link: Transport) -> int | None:
        """The link is up: ask for the key set, or say it; the token of its delivery then."""

    def objection(self, topic: str, sealed: Sealed) -> str | None:
        """Why it is not to be heard; else it counts as heard from now on."""

    def key_set_heard(self, raw: bytes) -> str | None:
        """What lies on the topic of the key set; why it is not believed."""

    def may_hear(self, topic: str) -> bool:
        """Whether anybody is to be told anything on this topic."""


class KeyRing:
    """The keys that speak for the coordinator: of the newest key set that was ever heard."""

    def __init__(self, topics: Topics, identity: Identity, *, read_only: bool = False) -> None:
        """Takes the set in the identity's folder.

        Raises:
            StateError: it cannot be read.
        """
        self._topics = topics
        self._identity = identity
        self._read_only = read_only
        self._keys: dict[bytes, bytes] = {}
        self.version = 0
        self.raw = identity.key_set()
        """The set as it is stored and published; empty: none is known."""
        if self.raw and (reason := self._adopt(self.raw)) is not None:
            _log.error("the stored key set is not taken: %s", reason)
            self.raw = b""

    def hear(self, raw: bytes) -> str | None:
        """A set that lies at the broker: a newer one is kept, and is valid from then on."""
        before = self.version
        reason = self._adopt(raw)
        if reason is None and self.version > before:
            _log.info("the coordinator's keys are those of version %d from now on", self.version)
        return reason

    def find(self, identifier: bytes) -> bytes | None:
        """The public key, uint8[32], with this id."""
        return self._keys.get(identifier)

    def _adopt(self, raw: bytes) -> str | None:
        key_set = open_key_set(self._topics, raw, self._identity.authority)
        if isinstance(key_set, str):
            return f"{NO_AUTHORITY}: {key_set}"
        if key_set.version < self.version:
            return f"{STALE}: key set {key_set.version}, and {self.version} is known"
        if key_set.version > self.version and raw != self.raw and not self._read_only:
            try:
                self._identity.save_key_set(raw)
            except StateError as exc:
                return f"{NOT_KEPT}: key set {key_set.version}: {exc.args[0]}"
        if key_set.version > self.version:
            self.raw, self.version = raw, key_set.version
            self._keys = {key_id(public): public for public in key_set.coordinator}
        return None


def coordinator_objection(ring: KeyRing, topic: str, sealed: Sealed) -> str | None:
    """Why this is not the coordinator's."""
    public = ring.find(sealed.key_id)
    if public is None:
        return UNKNOWN
    return None if is_sealed_by(public, topic, sealed) else BROKEN


def device_objection(members: Members, device_id: str, topic: str, sealed: Sealed) -> str | None:
    """Why this is not the device's."""
    public = members.key(device_id)
    if public is None:
        return NO_MEMBER
    if sealed.key_id != key_id(public):
        return OF_ANOTHER
    return None if is_sealed_by(public, topic, sealed) else BROKEN


class Onlooker:
    """Somebody who only looks: changes nothing, and has no marks.

    Of devices whose keys are not known here, and of other federations, the messages are shown as
    they are; and what he says himself to try whether it arrives, wherever it is.
    """

    def __init__(self, topics: Topics, identity: Identity, members: Members | None) -> None:
        self._topics = topics
        self._ring = KeyRing(topics, identity, read_only=True)
        self._members = members
        self._own = public_bytes(identity.key)

    def linked(self, link: Transport) -> None:
        """Ask for the key set."""
        link.subscribe([self._topics.keys])

    def objection(self, topic: str, sealed: Sealed) -> str | None:
        """Why it is not to be heard."""
        device_id = self._topics.device_of(topic)
        if device_id is None and topic.startswith(f"{self._topics.root}/"):
            return coordinator_objection(self._ring, topic, sealed)
        if device_id is None or self._members is None or is_sealed_by(self._own, topic, sealed):
            return None
        return device_objection(self._members, device_id, topic, sealed)

    def key_set_heard(self, raw: bytes) -> str | None:
        """Take a newer one, for as long as we look."""
        return self._ring.hear(raw)

    def may_hear(self, topic: str) -> bool:  # noqa: ARG002
        """Everybody."""
        return True
