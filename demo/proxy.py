"""A TCP proxy that stands for one device's network: it can be cut, and it can hold back.

Real sockets, so what the client goes through is what a real device goes through: connections that
break, a broker that cannot be reached, an uplink on which nothing moves for a while.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_READ_BYTES = 65536
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: close with a reset, as a network that vanished."""


class Proxy:
    """Forwards a loopback port to another. A context manager that starts and stops it."""

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, target_port)
        self._listener = socket.create_server((host, 0))
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
        try:
            broker = socket.create_connection(self._target, timeout=5)
        except OSError:
            _reset(client)
            return
        broker.settimeout(None)
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
            while content := source.recv(_READ_BYTES):
                if is_uplink:
                    self._uplink_open.wait()
                sink.sendall(content)
        # One side is gone: so is the other, for MQTT knows no half-closed connections.
        with self._lock:
            ours = {source, sink} & self._sockets
            self._sockets -= ours
        for link in ours:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()


def _reset(link: socket.socket) -> None:
    """Close so that the peer sees a reset; a pump that reads it wakes up."""
    with contextlib.suppress(OSError):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()
