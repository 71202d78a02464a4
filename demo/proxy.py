"""A TCP proxy that stands for one device's network: cut, held back, slow, far away, lossy.

Real sockets, so what the client goes through is what a real device goes through: connections that
break, a broker that cannot be reached, an uplink on which nothing moves for a while, a slow line.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import struct
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

_READ_BYTES = 65536
_PACKET_BYTES = 1448
"""What TCP loses at once on most lines."""
_BUFFER_BYTES = 32_768
"""What a slow line's kernel and router hold: little, so that what was carried is what arrived."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: close with a reset, as a network that vanished."""


class Line(NamedTuple):
    """How a line is, in each direction alike. The default: as it comes."""

    bytes_s: float = 0.0
    """Rate; 0: no limit."""
    delay_ms: float = 0.0
    """One way."""
    jitter_ms: float = 0.0
    """The delay varies by as much, and TCP keeps the order."""
    loss: float = 0.0
    """Share of packets lost. TCP sends them again, so that all behind them waits a round trip."""


AS_IT_COMES = Line()


class Proxy:
    """Forwards a loopback port to another. A context manager that starts and stops it."""

    def __init__(
        self, target_port: int, host: str = "127.0.0.1", *, line: Line = AS_IT_COMES, seed: int = 0
    ) -> None:
        self._target = (host, target_port)
        self._line = line
        self._dice = random.Random(seed)  # noqa: S311
        self.carried = {True: 0, False: 0}
        """Bytes that came out at the far end, by whether it was the uplink."""
        self.connections = 0
        self._listener = socket.create_server((host, 0))
        if line.bytes_s:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.port = int(self._listener.getsockname()[1])
        """Where a client connects to."""
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._up = True
        self._uplink_open = threading.Event()
        self._uplink_open.set()
        self._stopped = False
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def start(self) -> None:
        """Begin to forward."""
        self._acceptor.start()

    def stop(self) -> None:
        """Close everything."""
        self._stopped = True
        self.cut()
        self._uplink_open.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._acceptor.is_alive():
            self._acceptor.join(timeout=5)

    def cut(self) -> None:
        """Lose the network: connections break, new ones are refused until `heal`."""
        with self._lock:
            self._up = False
            broken, self._sockets = self._sockets, set()
        for link in broken:
            _reset(link)

    def heal(self) -> None:
        """The network is back."""
        with self._lock:
            self._up = True

    def is_up(self) -> bool:
        """Whether there is a network."""
        with self._lock:
            return self._up

    def hold_uplink(self) -> None:
        """From now on nothing reaches the other side; it is kept, not lost."""
        self._uplink_open.clear()

    def release_uplink(self) -> None:
        """What was held back goes through."""
        self._uplink_open.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        if not self.is_up():
            _reset(client)
            return
        broker = socket.socket()
        if self._line.bytes_s:
            broker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        broker.settimeout(5)
        try:
            broker.connect(self._target)
        except OSError:
            broker.close()
            _reset(client)
            return
        broker.settimeout(None)
        self.connections += 1
        with self._lock:
            accepted = self._up
            if accepted:
                self._sockets.update((client, broker))
        if not accepted:
            _reset(client)
            _reset(broker)
            return
        for link in (client, broker):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink, is_uplink in ((client, broker, True), (broker, client, False)):
            threading.Thread(
                target=self._pump, args=(source, sink, is_uplink), name="proxy-pump", daemon=True
            ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_uplink: bool) -> None:
        with contextlib.suppress(OSError):
            if self._line == AS_IT_COMES:
                while content := source.recv(_READ_BYTES):
                    self._forward(sink, content, is_uplink)
            else:
                self._carry(source, sink, is_uplink)
        # One side is gone: so is the other, for MQTT knows no half-closed connections.
        with self._lock:
            ours = {source, sink} & self._sockets
            self._sockets -= ours
        for link in ours:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _forward(self, sink: socket.socket, content: bytes, is_uplink: bool) -> None:
        if is_uplink:
            self._uplink_open.wait()
        sink.sendall(content)
        self.carried[is_uplink] += len(content)

    def _carry(self, source: socket.socket, sink: socket.socket, is_uplink: bool) -> None:
        """Packet by packet: the line takes one every `packet / rate`, and has it for its delay."""
        line = self._line
        flying: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def land() -> None:
            with contextlib.suppress(OSError):
                while item := flying.get():
                    due_s, content = item
                    if not content:
                        return
                    time.sleep(max(0.0, due_s - time.monotonic()))
                    self._forward(sink, content, is_uplink)

        lander = threading.Thread(target=land, name="proxy-lander", daemon=True)
        lander.start()
        free_at_s = due_s = 0.0
        size = _PACKET_BYTES if line.loss or line.bytes_s < 1e6 else _READ_BYTES
        try:
            while content := source.recv(size):
                now_s = time.monotonic()
                if line.bytes_s:
                    free_at_s = max(free_at_s, now_s) + len(content) / line.bytes_s
                    time.sleep(max(0.0, free_at_s - now_s))
                delay_ms = line.delay_ms + self._dice.uniform(-line.jitter_ms, line.jitter_ms)
                if self._dice.random() < line.loss:
                    delay_ms += 2 * line.delay_ms
                due_s = max(due_s, time.monotonic() + delay_ms / 1000)
                flying.put((due_s, content))
        finally:
            flying.put((0.0, b""))
            lander.join()


def _reset(link: socket.socket) -> None:
    """Close so that the peer sees a reset; a pump that reads it wakes up."""
    with contextlib.suppress(OSError):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()
