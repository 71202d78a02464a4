"""A broker in memory and the transport to it, for tests and the simulator.

It does what MQTT promises within one process and nothing more: retained messages, `+` filters,
wills. Delivery is immediate and in order unless a test's `Deliver` does otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedtide.limits import MESSAGE_BYTES_MAX
from fedtide.transport import Connected, Deliver, Delivered, Disconnected, Received, Will


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT topic filter with `+` and a final `#` covers a topic."""
    wanted, actual = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(actual) or level not in ("+", actual[index]):
            return False
    return len(wanted) == len(actual)


class MemoryBroker:
    """Retained messages and the links that are up."""

    def __init__(self, packet_bytes_max: int = MESSAGE_BYTES_MAX + 1024) -> None:
        self.packet_bytes_max = packet_bytes_max
        self.retained: dict[str, bytes] = {}
        self.links: list[MemoryTransport] = []

    def route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Deliver to every link that subscribed."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for link in list(self.links):
            if link.wants(topic):
                link.deliver(Received(topic, payload))


class MemoryTransport:
    """One link to a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, deliver: Deliver, will: Will | None = None) -> None:
        self._broker = broker
        self.deliver = deliver
        self._will = will
        self._filters: set[str] = set()
        self._token = 0

    def start(self) -> None:
        """Connect."""
        self._broker.links.append(self)
        self.deliver(Connected("memory", self._broker.packet_bytes_max))

    def stop(self) -> None:
        """Disconnect in good order: no will."""
        self._leave()

    def cut(self, reason: str = "cut") -> None:
        """Lose the link: the broker sends the will."""
        self._leave()
        if self._will is not None:
            self._broker.route(self._will.topic, self._will.payload, retain=True)
        self.deliver(Disconnected(reason))

    def wants(self, topic: str) -> bool:
        """Whether this link subscribed to `topic`."""
        return any(matches(topic_filter, topic) for topic_filter in self._filters)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Route at once; None: no link, or too large."""
        if self not in self._broker.links:
            return None
        if len(payload) + len(topic) + 32 > self._broker.packet_bytes_max:
            return None
        self._token += 1
        self._broker.route(topic, payload, retain=retain)
        self.deliver(Delivered(self._token))
        return self._token

    def subscribe(self, filters: Sequence[str], *, confirm: bool = True) -> None:  # noqa: ARG002
        """Subscribe, and get what is retained."""
        self._filters.update(filters)
        for topic, payload in sorted(self._broker.retained.items()):
            if any(matches(topic_filter, topic) for topic_filter in filters):
                self.deliver(Received(topic, payload, retained=True))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        self._filters.difference_update(filters)

    def _leave(self) -> None:
        self._filters.clear()
        if self in self._broker.links:
            self._broker.links.remove(self)
