"""The transport over paho-mqtt: MQTT 5, and 3.1.1 where the broker does not speak it.

What paho and brokers do badly is kept out by construction (docs/adr/0004-clean-sessions.md):
callbacks only enqueue; one thread writes to the socket; every connection is a new client with a
clean session, so nothing waits in a broker's memory or in paho's; nothing is published without a
link or beyond the packet limit; reconnecting backs off with jitter; bytes that move keep a link
alive, and silence ends it (`fedtide.pulse`).
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedtide.back_off import BackOff, Ended, How
from fedtide.config import BrokerConfig
from fedtide.limits import BLOCK_BYTES, MESSAGE_BYTES_MAX
from fedtide.paho_client import Client, guarded, reset, taken_bytes, without_nagle
from fedtide.pulse import ANSWER_MS, Pulse
from fedtide.transport import (
    Arriving,
    Broken,
    Connected,
    Deliver,
    Delivered,
    Disconnected,
    Received,
    Refused,
    Will,
)

_log = logging.getLogger(__name__)

WILL_DELAY_S = 3
"""A link that comes back within this time is not reported as lost (MQTT 5 only, and not where we
show a certificate: Mosquitto 2.0.11 frees sessions without a link twice when it reads its lists of
certificates anew, and dies of it)."""
ANSWER_S = ANSWER_MS / 1000
"""A broker that takes the connection and stays silent for this long is given up. Some brokers of
MQTT 3.1.1 (amqtt) do not refuse MQTT 5, they misread it and wait for more."""
CONNECT_S = 10.0
"""For TCP's connection to each of the host's addresses, and as much for a TLS handshake."""
ARRIVING_MS = 1_000
"""How often a message that is under way is told of."""
INFLIGHT_MAX = 20
"""Unconfirmed publications; Mosquitto's own default."""
_UNSUPPORTED_VERSION = 132
_SESSION_TAKEN_OVER, _UNSPECIFIED = 142, 128
_REFUSALS = frozenset({133, 134, 135, 138, 140, 144, 157})
"""Reason codes that another try will not cure: identity, credentials, permission, ban."""
_IN_BYTES_MAX = MESSAGE_BYTES_MAX + 1024
"""Of a packet: topic and headers beside a payload stay far below 1 kB. A broker of MQTT 5 keeps to
it; a link over which a longer one comes is ended."""


class MqttTransport:
    """One link to a broker; see `fedtide.transport.Transport` for the contract."""

    def __init__(
        self, config: BrokerConfig, client_id: str, deliver: Deliver, will: Will | None = None
    ) -> None:
        """Reads the files that `config` names.

        Raises:
            ConfigError: one of them cannot be used.
        """
        self._config = config
        self._where = f"{config.host}:{config.port}"
        self._password = config.password()
        self._tls = config.tls()
        self._client_id = client_id
        self._deliver = deliver
        self._will = will
        self._linger_s = WILL_DELAY_S if config.certificate_file is None else 0
        self._protocol = 4 if config.protocol == "3.1.1" else 5
        # A silent broker that spoke 5 is frozen; over 3.1.1 it would not tell its packet limit.
        self._spoke_5 = self._guessed = False
        self._packet_bytes_max = 0
        self._inflight_max = INFLIGHT_MAX
        self._client: Client | None = None
        self._published_at_ms: dict[int, int] = {}
        self._confirmed_early: set[int] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._connected_at_s: float | None = None
        self._how: How = "told"
        self._anew = False
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        """Begin to connect, and go on reconnecting until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Disconnect in good order and wait for the network thread."""
        self._stopped.set()
        client = self._client
        if client is not None:
            client.disconnect()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def reconnect(self) -> None:
        """Connect anew, with what the files of the configuration hold now.

        Raises:
            ConfigError: one of them cannot be used; the link stays as it is.
        """
        self._tls = self._config.tls()
        self._anew = True
        client = self._client
        if client is not None:
            client.disconnect()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send at least once (QoS 1); None: no link, or the broker's packet limit is smaller."""
        client = self._client
        if client is None or self._connected_at_s is None:
            return None
        if len(payload) + len(topic) + 32 > self._packet_bytes_max:
            sizes = len(payload), topic, self._packet_bytes_max
            _log.warning("%d bytes for %s exceed the broker's packet limit of %d", *sizes)
            return None
        at_ms = _now_ms()
        info = client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        with self._lock:
            if info.mid in self._confirmed_early:
                self._confirmed_early.remove(info.mid)
            elif client is self._client:  # else it is of a link that is gone
                if not self._published_at_ms:
                    self._pulse.confirmed(at_ms)
                self._published_at_ms[info.mid] = at_ms
        return info.mid

    def subscribe(self, filters: Sequence[str], *, confirm: bool = True) -> None:
        """Subscribe at QoS 1, or 0 without confirmation."""
        client = self._client
        if client is None or not filters:
            return
        qos = 1 if confirm else 0
        if self._protocol == 5:
            client.subscribe([(name, SubscribeOptions(qos=qos)) for name in filters])
        else:
            client.subscribe([(name, qos) for name in filters])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        client = self._client
        if client is not None and filters:
            client.unsubscribe(list(filters))

    def _run(self) -> None:
        try:
            self._connect_until_stopped()
        except Exception as exc:  # noqa: BLE001
            _log.exception("the link has failed")
            self._deliver(Broken(f"the link has failed: {type(exc).__name__}: {exc}"))

    def _connect_until_stopped(self) -> None:
        back_off = BackOff()
        while not self._stopped.is_set():
            reason = self._connect_once()
            up_since_s, self._connected_at_s = self._connected_at_s, None
            if self._stopped.is_set():
                return
            if reason is None:
                continue
            if self._anew:
                self._deliver(Disconnected("connecting anew, as asked"))
                continue
            carried = self._carried_bytes >= BLOCK_BYTES
            ended = Ended(time.monotonic(), up_since_s, carried, self._how)
            pause_s = back_off.pause_s(ended, self._config.reconnect_ms_max / 1000)
            if self._guessed and up_since_s is not None and not back_off.lived:
                self._protocol, self._guessed = 5, False
            if taken_over := self._how == "taken over":
                reason = (
                    f"another client has connected as {self._client_id!r} and taken our place; "
                    "no two may have the same name"
                )
            retry_ms, unwelcome = round(pause_s * 1000), self._how == "unwelcome"
            self._deliver(Disconnected(reason, retry_ms, taken_over, unwelcome))
            self._stopped.wait(pause_s)

    def _connect_once(self) -> str | None:
        """Connect and serve until the link is gone; why it went (None: try again at once)."""
        self._reason: str | None = "connection lost"
        self._how, self._anew = "told", False
        client = self._new_client()
        with self._lock:
            self._published_at_ms.clear()
            self._carried_bytes = 0
            self._confirmed_early.clear()
        try:
            arguments: dict[str, Any] = {}
            if self._protocol == 5:
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = self._linger_s
                properties.MaximumPacketSize = _IN_BYTES_MAX
                arguments = {"clean_start": True, "properties": properties}
            client.connect(
                self._config.host,
                self._config.port,
                keepalive=self._config.keepalive_s,
                **arguments,
            )
            self._client = client
            if self._stopped.is_set() or self._anew:  # while it connected
                reset(client.socket())
            else:
                self._serve(client)
        except (OSError, ssl.SSLError, ValueError) as exc:
            return f"no broker at {self._where}: {exc}"
        finally:
            self._client = None
        return self._reason

    def _serve(self, client: Client) -> None:
        """Run the network loop until the link is gone, or was never answered."""
        deadline_s = time.monotonic() + ANSWER_S
        self._pulse = Pulse(self._config.keepalive_s * 1000, _now_ms())
        told_at_ms = _now_ms()
        while True:
            events, client.bytes_came_in = client.events, False
            if client.loop(timeout=1.0) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
            if self._connected_at_s is None and time.monotonic() > deadline_s:
                self._not_answered(client)
                return
            at_ms = _now_ms()
            if client.bytes_came_in:
                self._pulse.heard(at_ms)
            if client.events != events:
                told_at_ms = at_ms
            elif client.bytes_came_in and at_ms - told_at_ms >= ARRIVING_MS:
                told_at_ms = at_ms
                self._deliver(Arriving())
            if not self._lives(client, at_ms):
                return

    def _not_answered(self, client: Client) -> None:
        self._reason = f"the broker at {self._where} does not answer"
        if self._config.protocol == "auto" and not self._spoke_5:
            self._protocol = 4 if self._protocol == 5 else 5
            self._guessed = True
            self._reason += f"; trying MQTT {'5' if self._protocol == 5 else '3.1.1'}"
        client.disconnect()
        client.loop(timeout=0.1)  # writes that, and waits for nobody

    def _lives(self, client: Client, at_ms: int) -> bool:
        """Ping when it is time, and end a dead link."""
        sock: Any = client.socket()
        if sock is None:
            return False
        self._pulse.taken(taken := taken_bytes(sock), at_ms)
        self._carried_bytes = max(self._carried_bytes, taken)
        reason = self._pulse.verdict(at_ms, unconfirmed=bool(self._published_at_ms))
        if reason is None:
            if self._connected_at_s is not None and self._pulse.ping_is_due(at_ms):
                client.ping()
            return True
        self._reason = reason
        reset(sock)  # no farewell: the will shall be said
        return False

    def _new_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5 if self._protocol == 5 else paho.MQTTv311,
            clean_session=None if self._protocol == 5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S
        client.packet_bytes_max = _IN_BYTES_MAX
        if self._config.username is not None:
            client.username_pw_set(self._config.username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._will is not None:
            properties = None
            if self._protocol == 5:
                properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
                properties.WillDelayInterval = self._linger_s
            client.will_set(
                self._will.topic, self._will.payload, qos=1, retain=True, properties=properties
            )
        client.max_inflight_messages_set(self._inflight_max)
        client.on_socket_open = without_nagle
        # Else paho also writes in the thread that publishes, without a lock: on a slow uplink the
        # two continue each other's packets. So it only wakes our loop, which alone writes.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = guarded(self._on_connect)
        client.on_disconnect = guarded(self._on_disconnect)
        client.on_message = guarded(self._on_message)
        client.on_publish = guarded(self._on_publish)
        client.on_subscribe = guarded(self._on_subscribe)
        return client

    def _on_connect(
        self, client: paho.Client, _data: object, _flags: object, code: ReasonCode, properties: Any
    ) -> None:
        if code.is_failure:
            self._connection_refused(client, code)
            return
        receive_max = getattr(properties, "ReceiveMaximum", self._inflight_max)
        if receive_max < self._inflight_max:
            # paho takes this limit only before it connects, and would overrun the broker's.
            self._inflight_max = receive_max
            self._reason = None
            client.disconnect()
            return
        keepalive_s = getattr(properties, "ServerKeepAlive", 0) or self._config.keepalive_s
        self._pulse = Pulse(keepalive_s * 1000, _now_ms())
        ours = self._config.packet_bytes_max or _IN_BYTES_MAX
        self._packet_bytes_max = min(ours, getattr(properties, "MaximumPacketSize", ours))
        self._connected_at_s = time.monotonic()
        self._spoke_5 = self._protocol == 5
        name = "MQTT 5" if self._spoke_5 else "MQTT 3.1.1"
        self._deliver(Connected(name, self._packet_bytes_max))

    def _connection_refused(self, client: paho.Client, code: ReasonCode) -> None:
        if code.value == _UNSUPPORTED_VERSION and self._protocol == 5:
            if self._config.protocol == "auto":
                _log.info("the broker at %s does not speak MQTT 5, using 3.1.1", self._where)
                self._protocol = 4
                self._reason = None
            else:
                self._reason = f"the broker at {self._where} does not speak MQTT 5"
        else:
            self._reason = f"the broker at {self._where} refuses the connection: {code}"
            if code.value in _REFUSALS:
                self._deliver(Refused(self._reason))
        client.disconnect()

    def _on_disconnect(
        self, client: Client, _data: object, _flags: object, code: ReasonCode, _more: object
    ) -> None:
        if client.too_large_bytes:
            self._reason = (
                f"the broker sends a packet of {client.too_large_bytes} bytes, "
                f"and {_IN_BYTES_MAX} are taken at most"
            )
        elif client.tls_alert:
            self._how = "unwelcome" if "certificate" in client.tls_alert else "told"
            self._reason = f"the broker does not take our certificate: {client.tls_alert}"
        elif self._connected_at_s is not None:
            self._reason = f"connection lost: {code}"
            if code.value == _SESSION_TAKEN_OVER:
                self._how = "taken over"
            elif code.value == _UNSPECIFIED:  # what Mosquitto 2.0.11 says of a name taken over
                self._how = "silently"
                self._reason = (
                    "connection lost without a word: the network, the broker, or another client "
                    f"named {self._client_id!r}"
                )

    def _on_message(self, client: Client, _data: object, message: paho.MQTTMessage) -> None:
        client.events += 1
        self._carried_bytes += len(message.payload)
        self._deliver(Received(message.topic, bytes(message.payload), bool(message.retain)))

    def _on_publish(
        self, client: Client, _data: object, mid: int, code: ReasonCode, _more: object
    ) -> None:
        client.events += 1
        at_ms = _now_ms()
        self._pulse.confirmed(at_ms)
        with self._lock:
            published_at_ms = self._published_at_ms.pop(mid, None)
            if published_at_ms is None:  # `publish` is still in the middle
                self._confirmed_early.add(mid)
        waited_ms = None if published_at_ms is None else at_ms - published_at_ms
        self._deliver(Delivered(mid, str(code) if code.is_failure else None, waited_ms))

    def _on_subscribe(
        self, client: Client, _data: object, _mid: int, codes: list[ReasonCode], _more: object
    ) -> None:
        client.events += 1
        for code in codes:
            if code.is_failure:
                _log.warning("the broker refuses a subscription: %s", code)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
