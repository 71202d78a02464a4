"""paho's client, but for its keep-alive, and what Linux knows of a TCP connection."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

_log = logging.getLogger(__name__)


class Client(paho.Client):
    """paho's client without its keep-alive, which gives up links that are only slow, and with a
    bound on what comes in."""

    bytes_came_in = False
    events = 0
    """What callbacks were told of."""
    packet_bytes_max = 0
    too_large_bytes = 0
    """Of the packet that ended the link."""
    tls_alert = ""
    """Why TLS ended the link, such as "certificate revoked". In TLS 1.3 a broker judges our
    certificate when the handshake has already ended here."""

    def loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        """paho's own way to wake itself listens on a port for a moment, and nobody here may."""
        if self._sockpairR is None or self._sockpairW is None:
            self._sockpairR, self._sockpairW = socket.socketpair()
            self._sockpairR.setblocking(False)
            self._sockpairW.setblocking(False)
        return super().loop(timeout)

    def _create_socket_connection(self) -> socket.socket:
        """paho binds the socket, to any address and port, before it connects: nobody may do that
        either."""
        if self._get_proxy():
            return super()._create_socket_connection()
        return socket.create_connection((self._host, self._port), timeout=self._connect_timeout)

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Called by `loop` when bytes have come in."""
        self.bytes_came_in = True
        return super().loop_read(max_packets)

    def _sock_recv(self, bufsize: int) -> bytes:
        """paho asks for, and Python allocates, what a packet's header says is still to come."""
        if bufsize > self.packet_bytes_max:
            self.too_large_bytes = bufsize
            raise OSError(errno.EMSGSIZE, f"a packet of {bufsize} bytes")
        try:
            return super()._sock_recv(bufsize)
        except ssl.SSLError as exc:
            self.tls_alert = tls_alert(exc)
            raise

    def loop_misc(self) -> MQTTErrorCode:
        """Called by `loop` for the keep-alive, which `MqttTransport` sees to."""
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def ping(self) -> None:
        """Ask the broker for a sign of life."""
        self._send_pingreq()


def tls_alert(error: ssl.SSLError) -> str:
    """What the other side says was wrong; empty: it said nothing."""
    _, _, alert = (error.reason or "").partition("_ALERT_")  # SSLV3_ALERT_CERTIFICATE_REVOKED
    return alert.replace("_", " ").lower()


def reset(sock: Any) -> None:
    """Close, and throw away what the kernel still holds: it would compete with the next connection
    for a slow line."""
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def taken_bytes(sock: Any) -> int:
    """What the other side's TCP has acknowledged (`tcpi_bytes_acked`, Linux 4.1); else 0."""
    if sys.platform != "linux":  # others have another layout
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("<Q", info, 120)[0])
    except (OSError, struct.error):
        return 0


def without_nagle(_client: paho.Client, _data: object, sock: Any) -> None:
    """Small messages go out at once: with Nagle's algorithm each answer costs up to 40 ms."""
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def guarded(callback: Callable[..., None]) -> Callable[..., None]:
    """An exception in a callback would end the network loop: it is logged and survived."""

    def guarded(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:  # noqa: BLE001
            _log.exception("the link's callback failed")

    return guarded
