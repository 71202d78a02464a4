"""What crosses the coordinator's link, counted: payloads, without what MQTT and TLS add to them."""

from __future__ import annotations

from collections.abc import Sequence

from fedtide.transport import (
    Connected,
    Deliver,
    Delivered,
    Disconnected,
    LinkEvent,
    Received,
    Transport,
)


class Traffic:
    """Counts since the start of the process. Each is written by one thread and read by any."""

    def __init__(self) -> None:
        self.connected = False
        self.disconnects = 0
        self.received_messages = self.received_bytes = 0
        self.sent_messages = self.sent_bytes = 0
        self.messages_refused_by_broker = 0

    def counting(self, deliver: Deliver) -> Deliver:
        """`deliver` for a transport whose events are counted."""

        def counted(event: LinkEvent) -> None:
            match event:
                case Received(_, payload, _):
                    self.received_messages += 1
                    self.received_bytes += len(payload)
                case Delivered(_, refused, _) if refused is not None:
                    self.messages_refused_by_broker += 1
                case Connected():
                    self.connected = True
                case Disconnected():
                    self.disconnects += self.connected
                    self.connected = False
                case _:
                    pass
            deliver(event)

        return counted


class CountedTransport:
    """A transport whose publications are counted."""

    def __init__(self, inner: Transport, traffic: Traffic) -> None:
        self._inner = inner
        self._traffic = traffic
        self.start, self.stop = inner.start, inner.stop
        self.unsubscribe = inner.unsubscribe

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """As the contract says."""
        token = self._inner.publish(topic, payload, retain=retain)
        if token is not None:
            self._traffic.sent_messages += 1
            self._traffic.sent_bytes += len(payload)
        return token

    def subscribe(self, filters: Sequence[str], *, confirm: bool = True) -> None:
        """As the contract says."""
        self._inner.subscribe(filters, confirm=confirm)
