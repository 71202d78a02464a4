"""The proxy that stands for a device's network."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from demo.proxy import Proxy

DEADLINE_S = 10.0


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that says everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(link: socket.socket) -> None:
        with link:
            try:
                while content := link.recv(65536):
                    link.sendall(content)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(link,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo_port: int) -> Iterator[Proxy]:
    with Proxy(echo_port) as running:
        yield running


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S)


def answer(link: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = link.recv(65536)
        if not part:
            raise ConnectionResetError
        content += part
    return content


def ask(proxy: Proxy, content: bytes) -> bytes:
    with connect(proxy) as link:
        link.sendall(content)
        return answer(link, len(content))


def test_everything_comes_through_unchanged(proxy: Proxy) -> None:
    sent = bytes(range(256)) * 2000
    with connect(proxy) as link:
        threading.Thread(target=link.sendall, args=(sent,), daemon=True).start()
        assert answer(link, len(sent)) == sent


def test_a_cut_breaks_connections_and_refuses_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as link:
        link.sendall(b"before")
        assert answer(link, 6) == b"before"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            answer(link, 1)
    with pytest.raises(OSError):
        ask(proxy, b"during")


def test_after_healing_connections_work_again(proxy: Proxy) -> None:
    proxy.cut()
    proxy.heal()
    with connect(proxy) as link:
        link.sendall(b"after")
        assert answer(link, 5) == b"after"


def test_a_held_uplink_delays_and_loses_nothing(proxy: Proxy) -> None:
    with connect(proxy) as link:
        proxy.hold_uplink()
        link.sendall(b"late")
        link.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.recv(1)
        proxy.release_uplink()
        link.settimeout(DEADLINE_S)
        assert answer(link, 4) == b"late"


def test_a_cut_while_holding_loses_what_was_held(proxy: Proxy) -> None:
    with connect(proxy) as link:
        proxy.hold_uplink()
        link.sendall(b"lost")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            answer(link, 4)
    proxy.release_uplink()
    proxy.heal()
    with connect(proxy) as link:
        link.sendall(b"anew")
        assert answer(link, 4) == b"anew"


def test_a_client_that_leaves_is_noticed_on_the_other_side() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        with Proxy(int(listener.getsockname()[1])) as proxy:
            link = connect(proxy)
            far, _ = listener.accept()
            with far:
                far.settimeout(DEADLINE_S)
                link.close()
                assert far.recv(1) == b""


def test_no_broker_behind_it_looks_like_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    with Proxy(port) as proxy, pytest.raises(OSError):
        ask(proxy, b"anybody")
