"""One client's way to the broker: latency, bandwidth, cuts, partitions; a transport for production.

A connection loses nothing by itself (TCP), it stalls and ends: what is lost is lost with it, or by
the broker. Each direction can be blocked on its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedtide.memory import matches
from fedtide.transport import Connected, Deliver, Disconnected, LinkEvent, Received, Will
from simulator.agenda import Agenda
from simulator.faults.broker import Broker
from simulator.faults.weather import Weather

Direction = Literal["up", "down"]
RETRY_MS_MIN = 500
STABLE_MS = 10_000
"""A connection that lived this long resets the pause before the next one (`fedtide.mqtt`)."""


@dataclass
class Speed:
    """What a link can do."""

    latency_ms: int = 5
    jitter_ms: int = 0
    bytes_per_ms: int = 10_000
    keepalive_ms: int = 60_000
    retry_ms_max: int = 60_000


@dataclass(eq=False)
class Connection:
    """One MQTT connection, as both ends see it."""

    link: SimulatedLink
    packet_bytes_max: int
    since_ms: int
    open_at_client: bool = True
    open_at_broker: bool = False
    filters: dict[str, bool] = field(default_factory=dict)
    """Topic filter to whether it is QoS 1."""
    queued: int = 0
    """On the way down."""

    def wants(self, topic: str) -> bool | None:
        """The QoS of the subscription that covers a topic (True: 1), if there is one."""
        confirm = self.filters.get(topic)
        if confirm is not None:
            return confirm
        found = (c for name, c in self.filters.items() if "+" in name and matches(name, topic))
        return next(found, None)


class SimulatedLink:
    """A `fedtide.transport.Transport`."""

    def __init__(
        self,
        agenda: Agenda,
        broker: Broker,
        weather: Weather,
        rng: random.Random,
        client_id: str,
        speed: Speed,
        said: Callable[[str, bytes], None],
        happened: Callable[[str], None],
    ) -> None:
        self._agenda, self._broker, self._weather, self._rng = agenda, broker, weather, rng
        self.client_id = client_id
        self.speed = speed
        self._said = said
        self._happened = happened
        self.will: Will | None = None
        self._deliver: Deliver = lambda _: None
        self._running = 0
        """Number of this start; 0: stopped."""
        self._starts = 0
        self._connection: Connection | None = None
        self._retry_ms = RETRY_MS_MIN
        self._token = 0
        self._free_at_ms: dict[Direction, int] = {"up": 0, "down": 0}
        self._last_at_ms: dict[Direction, int] = {"up": 0, "down": 0}
        self._blocked_until_ms: dict[Direction, int] = {"up": 0, "down": 0}
        self.down_until_ms = 0
        """No connection is possible before."""

    # ---- the process at this end ----

    def boot(self, deliver: Deliver, will: Will | None) -> None:
        """A new process uses the link from now on; `start` connects."""
        self._deliver, self.will = deliver, will
        self._retry_ms = RETRY_MS_MIN

    def start(self) -> None:
        """Begin to connect, and go on reconnecting until `stop`."""
        self._starts += 1
        self._running = self._starts
        self._agenda.after(self._rng.randrange(1, 50), self._connect, self._running)

    def stop(self) -> None:
        """Disconnect in good order, after what has been said."""
        connection, self._connection, self._running = self._connection, None, 0
        if connection is not None:
            connection.open_at_client = False
            self._send_up(connection, 4, self._leave, connection)

    def power_off(self, *, half_open: bool) -> None:
        """The process is gone without a word; `half_open`: nobody tells the broker."""
        connection, self._connection, self._running = self._connection, None, 0
        if connection is not None:
            connection.open_at_client = False
            wait_ms = self.speed.keepalive_ms * 3 // 2 if half_open else 1
            self._agenda.after(wait_ms, self._lose, connection, "no sign of life")

    def _leave(self, connection: Connection) -> None:
        self._broker.close(connection, said_goodbye=True, reason="goodbye")

    # ---- failing ----

    def cut(self, for_ms: int, reason: str = "cut") -> None:
        """The link breaks now, and stays down for a while."""
        self.down_until_ms = max(self.down_until_ms, self._agenda.now_ms + for_ms)
        if self._connection is not None:
            self._lose(self._connection, reason)

    def block(self, direction: Direction, for_ms: int) -> None:
        """Nothing passes in this direction for a while; who waits too long gives up."""
        until_ms = self._agenda.now_ms + for_ms
        self._blocked_until_ms[direction] = max(self._blocked_until_ms[direction], until_ms)
        patience_ms = self.speed.keepalive_ms * 3 // 2
        if self._connection is not None and for_ms > patience_ms:
            self._agenda.after(patience_ms, self._lose, self._connection, "keepalive exceeded")

    def heal(self) -> None:
        """Everything passes again."""
        self.down_until_ms = 0
        self._blocked_until_ms = {"up": 0, "down": 0}

    def _lose(self, connection: Connection, reason: str) -> None:
        self._broker.close(connection, said_goodbye=False, reason=reason)
        self.closed_by_broker(connection, reason)

    def closed_by_broker(self, connection: Connection, reason: str) -> None:
        """The connection has ended; tell the client and let it try again."""
        if connection.open_at_client:
            connection.open_at_client = False
            self._connection = None
            if self._agenda.now_ms - connection.since_ms > STABLE_MS:
                self._retry_ms = RETRY_MS_MIN
            self._retry(reason)

    # ---- connecting ----

    def _connect(self, running: int) -> None:
        if running != self._running or self._connection is not None:
            return
        now_ms, blocked = self._agenda.now_ms, max(self._blocked_until_ms.values())
        if not self._broker.up or now_ms < max(self.down_until_ms, blocked):
            self._retry("no broker answers")
            return
        connection = Connection(self, self._broker.packet_bytes_max, now_ms)
        self._connection = connection
        self._broker.accept(connection)
        self._free_at_ms = {"up": now_ms, "down": now_ms}
        self._last_at_ms = {"up": now_ms, "down": now_ms}
        connected = Connected("simulated", connection.packet_bytes_max)
        self.send_down(connection, connected, 4)

    def _retry(self, reason: str) -> None:
        pause_ms = self._rng.uniform(0.5, 1.0) * self._retry_ms
        self._retry_ms = min(self._retry_ms * 2, self.speed.retry_ms_max)
        self._agenda.after(1, self._tell, self._running, Disconnected(reason))
        self._agenda.after(pause_ms + 2, self._connect, self._running)

    def _tell(self, running: int, event: LinkEvent) -> None:
        if running == self._running:
            self._deliver(event)

    # ---- the transport ----

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send at least once; None: no link, or too large for the broker."""
        connection = self._connection
        size = len(payload) + len(topic) + 32
        if connection is None or size > connection.packet_bytes_max:
            if connection is not None:
                self._happened("beyond the packet limit")
            return None
        self._token += 1
        self._said(topic, payload)
        take = self._broker.take
        self._send_up(connection, size, take, connection, topic, payload, retain, self._token)
        return self._token

    def subscribe(self, filters: Sequence[str], *, confirm: bool = True) -> None:
        """Subscribe at QoS 1, or 0 without confirmation."""
        if self._connection is not None and filters:
            names = list(filters)
            self._send_up(
                self._connection, 50, self._broker.subscribe, self._connection, names, confirm
            )

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        if self._connection is not None and filters:
            names = list(filters)
            self._send_up(self._connection, 50, self._broker.unsubscribe, self._connection, names)

    # ---- the wire ----

    def _send_up(
        self, connection: Connection, size: int, action: Callable[..., None], *arguments: object
    ) -> None:
        at_ms = self._arrival_at_ms("up", size, message=action == self._broker.take)
        self._agenda.at(at_ms, self._arrive_up, connection, action, arguments)

    def _arrive_up(
        self, connection: Connection, action: Callable[..., None], arguments: tuple[object, ...]
    ) -> None:
        if not connection.open_at_broker:
            return
        blocked = self._blocked_until_ms["up"]
        if blocked > self._agenda.now_ms:
            self._agenda.at(blocked, self._arrive_up, connection, action, arguments)
        else:
            action(*arguments)

    def send_down(self, connection: Connection, event: LinkEvent, size: int) -> None:
        """From the broker to the client."""
        connection.queued += 1
        at_ms = self._arrival_at_ms("down", size, message=isinstance(event, Received))
        self._agenda.at(at_ms, self._arrive_down, connection, event)

    def _arrive_down(self, connection: Connection, event: LinkEvent) -> None:
        if not connection.open_at_client:
            return
        blocked = self._blocked_until_ms["down"]
        if blocked > self._agenda.now_ms:
            self._agenda.at(blocked, self._arrive_down, connection, event)
            return
        connection.queued -= 1
        self._deliver(event)

    def _arrival_at_ms(self, direction: Direction, size: int, *, message: bool) -> int:
        """When something sent now arrives: in order, but for messages in bad weather."""
        weather, rng, speed = self._weather, self._rng, self.speed
        begin_ms = max(self._agenda.now_ms, self._free_at_ms[direction])
        self._free_at_ms[direction] = begin_ms + size // speed.bytes_per_ms
        jitter_ms = rng.randrange(speed.jitter_ms + 1) if speed.jitter_ms else 0
        at_ms = self._free_at_ms[direction] + speed.latency_ms + jitter_ms
        if message and weather.delay and rng.random() < weather.delay:
            self._happened("delay")
            return at_ms + rng.randrange(weather.delay_ms_max)
        if message and weather.reorder and rng.random() < weather.reorder:
            self._happened("reorder")
            return at_ms + rng.randrange(2_000)
        at_ms = max(at_ms, self._last_at_ms[direction])
        self._last_at_ms[direction] = at_ms
        return at_ms
