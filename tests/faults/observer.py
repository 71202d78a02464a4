"""Somebody at the broker who hears everything that is said, and when."""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple, Self

from demo.brokers import OBSERVER, Broker
from fedtide.messages import AnyMessage, Chunk, Envelope, Receipt, decode
from fedtide.mqtt import MqttTransport
from fedtide.transport import Connected, LinkEvent, Received


class Heard(NamedTuple):
    """One message; chunks without their content."""

    at_s: float
    """Of the monotonic clock."""
    kind: str
    """up, down, presence, beacon, status."""
    device: str
    """Empty where there is none."""
    body: AnyMessage
    retained: bool


class Observer:
    """See the module. A context manager."""

    def __init__(self, broker: Broker, federation: str) -> None:
        self._root = f"fedtide/1/{federation}/"
        self.heard: list[Heard] = []
        self.uplink_bytes: Counter[str] = Counter()
        """Content of chunks by the digest of their blob."""
        self._link = MqttTransport(broker.access(OBSERVER), "fault-observer", self._deliver)

    def _deliver(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            self._link.subscribe(
                [f"{self._root}{kind}" for kind in ("up/+", "down/+", "presence/+")]
                + [f"{self._root}beacon", f"{self._root}status"]
            )
        elif isinstance(event, Received):
            kind, _, device = event.topic.removeprefix(self._root).partition("/")
            envelope = decode(event.payload)
            if not isinstance(envelope, Envelope):
                return
            body = envelope.body
            if isinstance(body, Chunk):
                self.uplink_bytes[body.digest] += len(body.content)
                body = Chunk(body.digest, body.size_bytes, body.first_block, body.crc32, b"-")
            self.heard.append(Heard(time.monotonic(), kind, device, body, event.retained))

    def since(self, at_s: float) -> list[Heard]:
        """What was said live after this point in time."""
        return [h for h in list(self.heard) if h.at_s >= at_s and not h.retained]

    def receipts(self) -> set[tuple[str, str, str]]:
        """Every receipt that was heard: device, update, verdict."""
        return {
            (heard.device, heard.body.update_id, heard.body.verdict)
            for heard in list(self.heard)
            if isinstance(heard.body, Receipt)
        }

    def __enter__(self) -> Self:
        self._link.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._link.stop()
