"""The seam between the program and a broker.

A transport hands everything it learns to `deliver`, from whatever thread it runs, and `deliver`
only enqueues. Nothing above this seam knows paho; nothing trusts the broker: a `Delivered` says
that the broker took a message, not that anybody will get it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct


class Connected(Struct, frozen=True):
    """The link is up."""

    protocol: str
    packet_bytes_max: int


class Disconnected(Struct, frozen=True):
    """The link is down; the transport tries again by itself."""

    reason: str
    retry_ms: int = 0
    """Until it tries again."""
    taken_over: bool = False
    """The broker says that another client came under our name (MQTT 5 only)."""
    unwelcome: bool = False
    """The broker does not take our certificate."""


class Refused(Struct, frozen=True):
    """The broker does not want us (credentials, permission). The transport goes on trying: whoever
    was welcome before may be so again; whoever never was had better look at the configuration."""

    reason: str


class Broken(Struct, frozen=True):
    """The transport itself has failed and will say nothing more."""

    reason: str


class Received(Struct, frozen=True):
    """A message came in. `retained`: the broker had kept it; nobody need have sent it just now."""

    topic: str
    payload: bytes
    retained: bool = False


class Delivered(Struct, frozen=True):
    """The broker took the message with this token, or refused it with a reason."""

    token: int
    refused: str | None = None
    waited_ms: int | None = None
    """From `publish` until now; None: not measured."""


class Arriving(Struct, frozen=True):
    """Bytes of a message that is not whole yet are coming in: slow is not silent. A transport that
    can tell says so about once a second."""


class Unsealed(Struct, frozen=True):
    """A message came in that nobody whom we believe has sealed so: it is dropped."""

    topic: str
    reason: str
    """`seal ...`; what stands before a colon is one of a few kinds, to be counted by."""
    regarding: str = ""
    """The sender's own id for it, where the sender is who it should be: of a replay."""


LinkEvent = Connected | Disconnected | Refused | Broken | Received | Unsealed | Delivered | Arriving
Deliver = Callable[[LinkEvent], None]


class Will(Struct, frozen=True):
    """What the broker says for us when we are gone."""

    topic: str
    payload: bytes


class Transport(Protocol):
    """One link to a broker."""

    def start(self) -> None:
        """Begin to connect, and go on reconnecting until `stop`."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send at least once; the token of its `Delivered`, or None: no link, or too large.

        A message that finds no link is dropped: whoever sent it says it again when it matters.
        """

    def subscribe(self, filters: Sequence[str], *, confirm: bool = True) -> None:
        """Receive messages of these topics, retained ones at once. Forgotten at a disconnect.

        `confirm=False` spares the broker and us a confirmation of each message (QoS 0), where the
        receiver notices a loss by itself.
        """

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Stop receiving."""

    def stop(self) -> None:
        """Disconnect in good order (the will is not sent) and release everything."""


Connect = Callable[[Deliver, Will | None], Transport]
"""Makes a link that tells all it learns, and has this said when it is gone."""
