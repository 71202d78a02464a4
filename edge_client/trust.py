"""Whom a device believes: its coordinator, by the keys of the newest key set, and each order once.

The newest number heard of each key is on disk before anything follows from a message that leaves
a trace: a task, a want, a receipt. From the others nothing lasting does, and flash wears out.
"""

from __future__ import annotations

import logging
from typing import Annotated

import msgspec
from msgspec import Meta

from fedtide.errors import DamagedError, StateError
from fedtide.generations import Generations
from fedtide.identity import Identity
from fedtide.keys import key_id
from fedtide.messages import Envelope, Problem, Renamed, Welcome, decode
from fedtide.objections import NO_AUTHORITY, NOT_KEPT, replayed
from fedtide.seal import Sealed, is_sealed_by
from fedtide.topics import Topics
from fedtide.transport import Transport
from fedtide.trust import KeyRing, coordinator_objection

_Marks = dict[Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")], Annotated[int, Meta(ge=0)]]
"""The newest number heard, by the id of its key."""
_log = logging.getLogger(__name__)


class DeviceTrust:
    """See the module. Used by the thread that brings messages."""

    def __init__(self, topics: Topics, identity: Identity) -> None:
        """Reads what the last life of this device knew.

        Raises:
            StateError: it may not be read.
        """
        self._topics = topics
        self._down = topics.down(identity.name)
        self._enrolled = topics.enrolled(identity.name)
        self._authority = identity.authority
        self._ring = KeyRing(topics, identity)
        self._saved = Generations(identity.folder / "marks")
        self._marks = self._load()

    def _load(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._saved.load() or b"{}", type=_Marks)
        except (DamagedError, msgspec.DecodeError, UnicodeDecodeError) as exc:
            _log.error("what was heard is forgotten, old messages may be heard again: %s", exc)
            return {}

    def linked(self, link: Transport) -> None:
        """Ask for the key set, before anything that is sealed with one of its keys."""
        link.subscribe([self._topics.keys])

    def objection(self, topic: str, sealed: Sealed) -> str | None:
        """Why it is not the coordinator's (or the registrar's), or nothing new."""
        if topic == self._enrolled:
            return self._of_authority(topic, sealed) or self._heard_before(sealed)
        objection = coordinator_objection(self._ring, topic, sealed)
        if objection is None and topic == self._down:
            objection = self._heard_before(sealed)
        return objection

    def _of_authority(self, topic: str, sealed: Sealed) -> str | None:
        """The registrar answers with the authority's seal."""
        return None if is_sealed_by(self._authority, topic, sealed) else NO_AUTHORITY

    def _heard_before(self, sealed: Sealed) -> str | None:
        signer, number = sealed.key_id.hex(), sealed.sequence
        newest = self._marks.get(signer, 0)
        if number == newest and _is_renaming(sealed.message):
            return None  # it lies at the broker until it is taken; heard twice, it says no more
        if number <= newest:
            return replayed(number, newest)
        # Of a key that is no longer in use no message is believed: its mark goes.
        kept = {key: mark for key, mark in self._marks.items() if self._is_in_use(key)}
        marks = kept | {signer: number}
        if _leaves_a_trace(sealed.message):
            try:
                self._saved.save(msgspec.json.encode(marks))
            except StateError as exc:
                return f"{NOT_KEPT}: {exc.args[0]}"
        self._marks = marks
        return None

    def _is_in_use(self, signer: str) -> bool:
        identifier = bytes.fromhex(signer)
        return identifier == key_id(self._authority) or self._ring.find(identifier) is not None

    def key_set_heard(self, raw: bytes) -> str | None:
        """Take a newer one."""
        return self._ring.hear(raw)

    def may_hear(self, topic: str) -> bool:  # noqa: ARG002
        """The coordinator, and whoever listens to a device."""
        return True


def _is_renaming(message: bytes) -> bool:
    envelope = decode(message)
    return isinstance(envelope, Envelope) and isinstance(envelope.body, Renamed)


def _leaves_a_trace(message: bytes) -> bool:
    envelope = decode(message)
    return isinstance(envelope, Envelope) and not isinstance(envelope.body, Welcome | Problem)
