"""Whether a broker can be used: reached, entered, and whether messages really arrive.

What a broker says of a subscription proves nothing: Mosquitto grants one to topics that its access
list forbids, and then withholds the messages; and over MQTT 3.1.1 it confirms a message that it
drops. So each permission is tried by a message that has to arrive.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fedtide.bundle import sha256_hex
from fedtide.checkup import Finding, ok, problem, warning
from fedtide.config import BrokerConfig
from fedtide.errors import FedtideError
from fedtide.inquiry import Inquiry
from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX
from fedtide.messages import Chunk, encode
from fedtide.paho_client import tls_alert
from fedtide.picture import Picture
from fedtide.sending import chunk_blocks_for
from fedtide.topics import DOCTOR_PREFIX
from fedtide.transport import (
    Connected,
    Delivered,
    Disconnected,
    LinkEvent,
    Received,
    Refused,
    Unsealed,
)

TCP_S = 3.0
REFUSAL_S = 0.5
CONNECT_S = 7.0
"""Long enough for a broker that is silent to MQTT 5 and answers MQTT 3.1.1."""
TRIP_S = 3.0
ARRIVAL_S = 1.0
"""From a broker's confirmation of a message to its arrival at a subscriber on the same link."""


class Trip(NamedTuple):
    """What became of a message."""

    confirmed: bool = False
    refused: str = ""
    arrived: bytes | None = None
    retained: bool = False
    lost: str = ""
    """Why the link was lost meanwhile."""


def check_access(config: BrokerConfig) -> Iterator[Finding]:
    """Files and network, up to the broker's door: yields a problem last if it is not reached."""
    if config.password_file is not None:
        password = config.password()
        assert password is not None
        if os.stat(config.password_file).st_mode & (stat.S_IRWXG | stat.S_IRWXO):  # noqa: PTH116
            yield warning(
                f"broker.password_file {str(config.password_file)!r} can be read by others",
                f"chmod 600 {str(config.password_file)!r}",
            )
    where = f"{config.host}:{config.port}"
    try:
        link = socket.create_connection((config.host, config.port), timeout=TCP_S)
    except OSError as exc:
        yield problem(f"no broker at {where}: {exc}", _reach_hint(exc, config))
        return
    with link:
        if config.ca_file is None:
            secret = ", and the password crosses in the clear" if config.username else ""
            yield ok(f"something answers at {where}, without TLS{secret}")
            return
        try:
            context = config.tls()
            assert context is not None
            with context.wrap_socket(link, server_hostname=config.host) as secure:
                yield ok(f"TLS with {where}: {secure.version()}, the certificate is trusted")
                if config.certificate_file is not None and (alert := _refusal(secure)):
                    yield problem(
                        f"the broker does not take our certificate: {alert}", config.refused_hint
                    )
        except (OSError, ssl.SSLError, ValueError) as exc:
            yield problem(
                f"no TLS with {where}: {exc}",
                "check broker.ca_file, that broker.host is a name in the broker's certificate, "
                "that its port speaks TLS, and this machine's clock",
            )


def _refusal(link: ssl.SSLSocket) -> str:
    """Why the broker refuses our certificate, which it judges after the handshake; empty: it does
    not within a moment."""
    link.settimeout(REFUSAL_S)
    try:
        link.recv(1)
    except TimeoutError:
        return ""
    except ssl.SSLError as exc:
        return tls_alert(exc)
    return ""


def _reach_hint(exc: OSError, config: BrokerConfig) -> str:
    if isinstance(exc, socket.gaierror):
        return f"broker.host {config.host!r} is no known name: correct it, or the name service"
    if isinstance(exc, ConnectionRefusedError):
        return "start the broker, or correct broker.host and broker.port"
    return "check broker.host, the network between here and there, and firewalls"


class Probe:
    """A link on which messages are tried, until `until_s` of the monotonic clock."""

    def __init__(self, inquiry: Inquiry, picture: Picture, until_s: float) -> None:
        self._inquiry = inquiry
        self._picture = picture
        self._until_s = until_s
        self.device_id = f"{DOCTOR_PREFIX}{secrets.token_hex(4)}"
        """No device's name: what is said under it concerns nobody."""
        self.connected = Connected("", 0)

    def enter(self) -> Iterator[Finding]:
        """Connect, and judge what the broker says of itself.

        Raises:
            BrokerError: its packet limit cannot carry the protocol.
        """
        try:
            self.connected = self._inquiry.connect(min(CONNECT_S, self._left_s()))
        except FedtideError as exc:
            if "refuses the connection" in str(exc):
                todo = exc.hint or ""
            else:
                todo = "is it MQTT at this port? TLS needs broker.ca_file, and often port 8883"
            yield problem(str(exc.args[0]), todo)
            return
        self._inquiry.listen(self._picture.filters())
        protocol, limit = self.connected.protocol, self.connected.packet_bytes_max
        yield ok(f"let in over {protocol}")
        if chunk_blocks_for(limit) < CHUNK_BLOCKS_MAX:  # raises where not one block fits
            yield warning(
                f"its packet limit of {limit:,} bytes makes transfers slower",
                "raise it (Mosquitto: max_packet_size) to 131,072 or more",
            )

    @property
    def mqtt_5(self) -> bool:
        """Whether the broker says which messages it refuses."""
        return self.connected.protocol == "MQTT 5"

    def _left_s(self) -> float:
        return max(0.1, self._until_s - time.monotonic())

    def take(self, event: LinkEvent) -> None:
        """Remember what an event tells of the federation."""
        if isinstance(event, Received):
            now_ms = time.monotonic_ns() // 1_000_000
            self._picture.hear(event.topic, event.payload, now_ms, retained=event.retained)
        elif isinstance(event, Unsealed):
            self._picture.refuse(event.topic, event.reason)

    def listen(self, filters: list[str]) -> None:
        """Subscribe."""
        self._inquiry.link.subscribe(filters)

    def trip(
        self,
        topic: str,
        payload: bytes,
        *,
        at: str | None = None,
        hear: bool = True,
        is_it: Callable[[bytes], bool] = lambda _content: True,
    ) -> Trip:
        """Publish on `topic`, and wait for the confirmation, and if `hear` for a message at `at`
        (by default the same topic) that `is_it`: others may speak there, too."""
        self._inquiry.link.subscribe([topic] if at is None else [at])
        token = self._inquiry.link.publish(topic, payload)
        if token is None:
            return Trip(lost="there is no link, or the message exceeds the broker's packet limit")
        trip = Trip()
        until_s = time.monotonic() + min(TRIP_S, self._left_s())
        while (event := self._inquiry.next_event(until_s - time.monotonic())) is not None:
            self.take(event)
            match event:
                case Delivered(done, refused) if done == token:
                    trip = trip._replace(confirmed=refused is None, refused=refused or "")
                    if refused:
                        break
                    # An answer takes longer: somebody has to give it.
                    wait_s = ARRIVAL_S if at is None else TRIP_S
                    until_s = time.monotonic() + min(wait_s, self._left_s())
                case Received(name, content, retained) if name == (at or topic) and is_it(content):
                    trip = trip._replace(arrived=content, retained=retained)
                case Disconnected(reason) | Refused(reason):
                    return trip._replace(lost=reason)
                case _:
                    pass
            if trip.confirmed and (trip.arrived is not None or not hear):
                break
        self._inquiry.link.unsubscribe([topic] if at is None else [at])
        return trip

    def hear(self, seconds: float) -> None:
        """Take what comes."""
        for event in self._inquiry.events(min(seconds, self._left_s())):
            self.take(event)

    def retained_trip(self, topic: str, payload: bytes) -> Trip:
        """Leave a retained message, fetch it as whoever comes later does, and take it away."""
        try:
            left = self._publish(topic, payload)
            if not left.confirmed:
                return left
            return self._fetched(topic)
        finally:
            self._publish(topic, b"")

    def _publish(self, topic: str, payload: bytes) -> Trip:
        token = self._inquiry.link.publish(topic, payload, retain=True)
        until_s = time.monotonic() + min(TRIP_S, self._left_s())
        while token is not None:
            event = self._inquiry.next_event(until_s - time.monotonic())
            if event is None:
                break
            self.take(event)
            if isinstance(event, Delivered) and event.token == token:
                return Trip(confirmed=event.refused is None, refused=event.refused or "")
            if isinstance(event, Disconnected | Refused):
                return Trip(lost=event.reason)
        return Trip()

    def _fetched(self, topic: str) -> Trip:
        self._inquiry.link.subscribe([topic])
        until_s = time.monotonic() + min(TRIP_S, self._left_s())
        while (event := self._inquiry.next_event(until_s - time.monotonic())) is not None:
            self.take(event)
            if isinstance(event, Received) and event.topic == topic:
                return Trip(confirmed=True, arrived=event.payload, retained=event.retained)
        return Trip(confirmed=True)

    def chunk(self, blocks: int | None = None) -> bytes:
        """A chunk that belongs to no upload; the largest message that this broker is given."""
        blocks = blocks or chunk_blocks_for(self.connected.packet_bytes_max)
        content = secrets.token_bytes(BLOCK_BYTES) * blocks
        chunk = Chunk(sha256_hex(content), len(content), 0, zlib.crc32(content), content)
        return encode(chunk, self.device_id)


def forbidden(user: str | None, verb: str, topic: str, because: str) -> Finding:
    """The broker's access list stands in the way."""
    who = "an anonymous user" if user is None else f"user {user!r}"
    return problem(
        f"{who} may not {verb} {topic}: {because}",
        f"give {who} the right to {verb} it in the broker's access list "
        "(deploy/mosquitto/acl is one that works)",
    )
