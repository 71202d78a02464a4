"""A broker that is as bad as real ones.

It acknowledges what it then loses, drops the newest silently when a client's queue is full, forgets
retained messages at a crash (all, or those since its last save) or brings old ones back, says wills
late or never, delivers twice, out of order, and has another packet limit after a restart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from fedtide.memory import matches
from fedtide.transport import Delivered, Received
from simulator.agenda import Agenda
from simulator.faults.weather import Weather

if TYPE_CHECKING:
    from simulator.faults.link import Connection

Memory = Literal["all", "saved", "nothing"]
"""What retained messages a broker has after a crash."""


class Broker:
    """See the module."""

    def __init__(
        self,
        agenda: Agenda,
        weather: Weather,
        rng: random.Random,
        happened: Callable[[str], None],
    ) -> None:
        self._agenda = agenda
        self._weather = weather
        self._rng = rng
        self._happened = happened
        self.up = True
        self.boots = 0
        self.packet_bytes_max = 132_096
        self.retained: dict[str, bytes] = {}
        self._saved: dict[str, bytes] = {}
        self.connections: list[Connection] = []

    # ---- connections ----

    def accept(self, connection: Connection) -> None:
        """A client connects; an older connection of the same name is closed (MQTT 5, 3.1.4)."""
        for other in list(self.connections):
            if other.link.client_id == connection.link.client_id:
                self._happened("session taken over")
                self.close(other, said_goodbye=False, reason="session taken over")
        connection.open_at_broker = True
        self.connections.append(connection)

    def close(self, connection: Connection, *, said_goodbye: bool, reason: str) -> None:
        """A connection ends; its will is due unless the client said goodbye or comes back."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        connection.open_at_broker = False
        connection.filters.clear()
        if not said_goodbye and connection.link.will is not None:
            if self._rng.random() < self._weather.will_lost:
                self._happened("will lost")
            else:
                delay_ms = self._weather.will_delay_ms
                self._agenda.after(delay_ms, self._say_will, connection, self.boots)
        connection.link.closed_by_broker(connection, reason)

    def _say_will(self, connection: Connection, boots: int) -> None:
        will, client_id = connection.link.will, connection.link.client_id
        back = self._weather.will_delay_ms and any(
            other.link.client_id == client_id for other in self.connections
        )
        if self.up and boots == self.boots and will is not None and not back:
            self.route(will.topic, will.payload, retain=True)

    # ---- failing ----

    def save(self) -> None:
        """Write the retained messages to disk, as Mosquitto does now and then."""
        self._saved = dict(self.retained)

    def crash(self, memory: Memory) -> None:
        """kill -9: sessions, queues and wills are gone."""
        self.up = False
        self.boots += 1
        for connection in list(self.connections):
            self.connections.remove(connection)
            connection.open_at_broker = False
            connection.filters.clear()
            connection.link.closed_by_broker(connection, "the broker is gone")
        if memory == "nothing":
            self.retained = {}
        elif memory == "saved":
            self.retained = dict(self._saved)

    def restart(self, packet_bytes_max: int) -> None:
        """Come back."""
        self.up = True
        self.packet_bytes_max = packet_bytes_max

    # ---- messages ----

    def take(
        self, connection: Connection, topic: str, payload: bytes, retain: bool, token: int
    ) -> None:
        """A publication arrives: acknowledged, and then perhaps lost."""
        connection.link.send_down(connection, Delivered(token), 4)
        if self._rng.random() < self._weather.drop:
            self._happened("acknowledged and lost")
            return
        self.route(topic, payload, retain=retain)

    def route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Deliver to whoever subscribed."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for connection in list(self.connections):
            confirm = connection.wants(topic)
            if confirm is not None:
                self._deliver(connection, Received(topic, payload), confirm=confirm)

    def subscribe(self, connection: Connection, filters: Sequence[str], confirm: bool) -> None:
        """Subscribe, and send what is retained."""
        for name in filters:
            connection.filters[name] = confirm
        exact = [name for name in filters if "+" not in name]
        wild = [name for name in filters if "+" in name]
        topics = [name for name in exact if name in self.retained]
        if wild:
            topics += [t for t in sorted(self.retained) if any(matches(w, t) for w in wild)]
        for topic in topics:
            message = Received(topic, self.retained[topic], retained=True)
            self._deliver(connection, message, confirm=confirm)

    def unsubscribe(self, connection: Connection, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        for name in filters:
            connection.filters.pop(name, None)

    def _deliver(self, connection: Connection, message: Received, *, confirm: bool) -> None:
        weather, rng = self._weather, self._rng
        if connection.queued >= weather.queue_max:
            self._happened("queue overflow")
            return
        if not confirm and rng.random() < weather.qos0_loss:
            self._happened("QoS 0 lost")
            return
        size = len(message.payload) + len(message.topic)
        connection.link.send_down(connection, message, size)
        if confirm and rng.random() < weather.duplicate:
            self._happened("duplicate")
            connection.link.send_down(connection, message, size)
