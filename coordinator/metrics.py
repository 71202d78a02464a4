"""The page that Prometheus reads, over HTTP, in threads of its own that cannot hold up a round.

A scrape asks the coordinator's thread for figures, and waits a little; that thread hands over a
snapshot between two events, at most one a second, whoever asks how often. Pages are made of it
here. Connections are few, short-lived and bounded: one that is slow is cut, by age, and the oldest
makes room for the newest.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from coordinator.config import CoordinatorConfig
from coordinator.exposition import Exposition
from coordinator.figures import Figures
from coordinator.traffic import Traffic
from fedtide.errors import FedtideError

_log = logging.getLogger(__name__)

CONNECTIONS_MAX, CONNECTION_S = 8, 10.0
LOOK_S = 0.5
"""How often connections are looked at."""
FRESH_S = 1.0
"""Figures are as good as new for so long."""
ANSWER_S = 2.0
"""A coordinator that is busy for longer is shown as it was."""


class _NoFiguresError(Exception):
    """The coordinator has not said anything yet."""


class Figuring:
    """Between the coordinator's thread and those of the page."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._changed = threading.Condition()
        self._asked = False
        self._figures: Figures | None = None
        self._at_s = 0.0

    def show(self, figures: Figures) -> None:
        """What was asked for."""
        with self._changed:
            self._figures, self._at_s, self._asked = figures, time.monotonic(), False
            self._changed.notify_all()

    def newest(self) -> tuple[Figures, float]:
        """The newest figures and their age in seconds.

        Raises:
            _NoFiguresError: there are none.
        """
        with self._changed:
            if self._figures is None or time.monotonic() - self._at_s > FRESH_S:
                if not self._asked:
                    self._asked = True
                    self._ask()
                self._changed.wait_for(lambda: not self._asked, ANSWER_S)
            if self._figures is None:
                raise _NoFiguresError
            return self._figures, time.monotonic() - self._at_s


class MetricsServer:
    """Listens from the start on; `figuring.show` answers what `ask` asks for."""

    def __init__(
        self, config: CoordinatorConfig, traffic: Traffic, ask: Callable[[], None]
    ) -> None:
        """Bind.

        Raises:
            FedtideError: somebody else listens there, or it is no address of this machine. It may
                be soon: a VPN comes up after us.
        """
        self.figuring = Figuring(ask)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Exposition(self.figuring.newest, config, traffic))
        ProcessCollector(registry=registry)
        address = config.metrics.address()
        try:
            self._server = _Server(address, registry)
        except OSError as exc:
            raise FedtideError(
                f"metrics.listen {config.metrics.listen!r} cannot be listened at: {exc.strerror}",
                hint="choose another port, or stop who has it (ss -ltnp shows that); a service "
                "tries again",
            ) from exc
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK_S,), name="metrics", daemon=True
        )
        self._thread.start()
        _log.info("metrics at http://%s/metrics", config.metrics.listen)

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.registry = registry
        self.rendering = threading.Lock()
        self._open: dict[Any, float] = {}
        self._guard = threading.Lock()
        if ip_address(address[0]).version == 6:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Page)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            if len(self._open) >= CONNECTIONS_MAX:
                oldest = next(iter(self._open))
                del self._open[oldest]
                _cut(oldest)
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Each `LOOK_S`: connections have had their time."""
        latest_s = time.monotonic() - CONNECTION_S
        with self._guard:
            for request, began_s in list(self._open.items()):
                if began_s < latest_s:
                    del self._open[request]
                    _cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A peer that went away or was cut is none of our business."""
        _log.debug("a scrape failed", exc_info=True)


def _cut(request: Any) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Page(BaseHTTPRequestHandler):
    timeout = 5.0
    server_version, sys_version = "fedtide", ""
    server: _Server

    def do_GET(self) -> None:
        """The page."""
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        try:
            with self.server.rendering:
                page = encode(self.server.registry)
        except _NoFiguresError:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "no figures yet")
            return
        except OSError:  # the disk is failing: the coordinator itself will say so
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Each scrape is no news."""
