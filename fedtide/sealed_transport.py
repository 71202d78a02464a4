"""A link whose messages are sealed: what goes out is sealed, what comes in is opened and judged.

A broker that was broken into can then withhold, but not forge, alter or replay. What does not
verify becomes an `Unsealed`, and nothing more; nothing here raises. Empty payloads, which take
away what lies on a topic, are no messages and carry no seal.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtide.errors import StateError
from fedtide.messages import Envelope, decode
from fedtide.objections import MISSING, REPLAYED, UNNUMBERED
from fedtide.seal import OVERHEAD_BYTES, UNORDERED, Sealed, open_sealed, seal
from fedtide.topics import Topics
from fedtide.transport import (
    Connected,
    Deliver,
    Delivered,
    LinkEvent,
    Received,
    Transport,
    Unsealed,
    Will,
)
from fedtide.trust import Trust

L = TypeVar("L", bound=Transport)
_log = logging.getLogger(__name__)


class SealedTransport(Generic[L]):
    """See the module, and `fedtide.transport.Transport` for the contract."""

    def __init__(
        self,
        connect: Callable[[Deliver, Will | None], L],
        deliver: Deliver,
        will: Will | None,
        topics: Topics,
        key: Ed25519PrivateKey,
        take_number: Callable[[], int],
        trust: Trust,
    ) -> None:
        """`connect` makes the link itself; `take_number` gives each seal its sequence, and may
        raise a StateError."""
        self._deliver = deliver
        self._topics = topics
        self._key = key
        self._take_number = take_number
        self._trust = trust
        self._lock = threading.Lock()
        self._own_token: int | None = None
        """Of what nobody above has said."""
        if will is not None:
            # A will may come at any time, and lies on a topic where no order is asked for.
            will = Will(will.topic, seal(will.topic, will.payload, key, UNORDERED))
        self.inner = connect(self._heard, will)

    def start(self) -> None:
        """Begin to connect."""
        self.inner.start()

    def stop(self) -> None:
        """Disconnect in good order."""
        self.inner.stop()

    def subscribe(self, filters: Sequence[str], *, confirm: bool = True) -> None:
        """Receive messages of these topics."""
        self.inner.subscribe(filters, confirm=confirm)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Stop receiving."""
        self.inner.unsubscribe(filters)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Seal and send; None also where nobody is to be told, or no number can be reserved."""
        if not self._trust.may_hear(topic):
            return None
        with self._lock:  # numbers go out in their order
            try:
                raw = seal(topic, payload, self._key, self._take_number()) if payload else b""
            except StateError as exc:
                _log.error("nothing can be sealed: %s", exc.args[0])
                return None
            return self.inner.publish(topic, raw, retain=retain)

    def _heard(self, event: LinkEvent) -> None:
        match event:
            case Connected(protocol, packet_bytes_max):
                self._own_token = self._trust.linked(self.inner)
                self._deliver(Connected(protocol, packet_bytes_max - OVERHEAD_BYTES))
            case Received(topic, payload) if payload:
                opened = self._opened(event)
                if opened is not None:
                    self._deliver(opened)
            case Received(topic) if self._topics.is_ordered(topic):
                pass  # nothing is said; of a state it would say that there is none any more
            case Delivered(token, None) if token == self._own_token:
                pass
            case _:
                self._deliver(event)

    def _opened(self, event: Received) -> LinkEvent | None:
        """The message, or why it is none; None: it was meant for us who open it."""
        sealed = open_sealed(event.payload)
        if sealed is None:
            return Unsealed(event.topic, MISSING)
        if event.topic == self._topics.keys:
            reason = self._trust.key_set_heard(event.payload)
            return None if reason is None else Unsealed(event.topic, reason)
        objection = self._trust.objection(event.topic, sealed)
        if objection is not None:
            return Unsealed(event.topic, objection, _regarding(objection, sealed))
        return Received(event.topic, sealed.message, event.retained)


def _regarding(objection: str, sealed: Sealed) -> str:
    """The sender's id for a message that is genuine and comes again, too late or unnumbered."""
    if not objection.startswith((REPLAYED, UNNUMBERED)):
        return ""
    envelope = decode(sealed.message)
    return envelope.id if isinstance(envelope, Envelope) else envelope.regarding
