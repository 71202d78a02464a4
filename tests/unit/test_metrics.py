"""The metrics page: read by Prometheus' own parser, bounded, and no burden to the coordinator."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from coordinator import metrics
from coordinator.config import CoordinatorConfig, MetricsConfig
from coordinator.exposition import REASONS_MAX
from coordinator.figures import Figures, FigureTaker
from coordinator.metrics import CONNECTIONS_MAX, MetricsServer
from coordinator.traffic import CountedTransport, Traffic
from demo.brokers import free_port
from fedtide import __version__
from fedtide.errors import ConfigError, FedtideError
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.transport import LinkEvent
from tests.federation import Federation

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(page: str) -> Samples:
    """By name and values of the labels, in alphabetical order of the labels."""
    families = text_string_to_metric_families(page)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def listening(config: CoordinatorConfig) -> CoordinatorConfig:
    listen = MetricsConfig(listen=f"127.0.0.1:{free_port()}")
    return msgspec.structs.replace(config, metrics=listen)


class Served:
    """A page over a federation in memory, whose thread answers at once, or not."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.taker = FigureTaker(federation.store, lambda: 1_500)
        self.config = listening(federation.config)
        self.traffic = Traffic()
        self.asked = threading.Event()
        self.server = MetricsServer(self.config, self.traffic, self.asked.set)
        self.url = f"http://{self.config.metrics.listen}/metrics"
        self.show()

    def show(self) -> Figures:
        figures = self.taker.take(self.federation.now_ms)
        self.server.figuring.show(figures)
        return figures

    def scrape(self) -> Samples:
        with urlopen(self.url, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            return samples(answer.read().decode())


@pytest.fixture(autouse=True)
def _quick_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LOOK_S", 0.02)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    federation = Federation(tmp_path, count=3)
    page = Served(federation)
    yield page
    page.server.stop()


def test_what_happened_is_on_the_page(served: Served) -> None:
    federation = served.federation
    federation.add("alpha", "beta", "gamma")
    federation.run(federation.finished)
    figures = served.show()
    seen = served.scrape()
    assert seen["fedtide_model_version", ()] == 3
    assert seen["fedtide_devices_online", ()] == 3
    assert seen["fedtide_rounds_total", ("train", "done")] == 3
    assert seen["fedtide_rounds_total", ("evaluate", "done")] == 1
    assert (
        seen["fedtide_updates_total", ("in time", "accepted")]
        == figures.counts["accepted: in time"]
    )
    assert seen["fedtide_rounds_planned", ()] == 3
    assert seen["fedtide_round_duration_seconds_count", ()] == 3
    assert seen["fedtide_round_duration_seconds_bucket", ("+Inf",)] == 3
    assert seen["fedtide_aggregation_seconds", ()] == 1.5
    assert seen["fedtide_model_timestamp_seconds", ()] == federation.now_ms / 1000
    assert seen["fedtide_database_bytes", ()] > 4_096
    assert seen["fedtide_blobs_bytes", ()] > 0
    assert seen["process_resident_memory_bytes", ()] > 1e6
    phases = {labels[0]: value for (name, labels), value in seen.items() if name == "fedtide_phase"}
    assert sum(phases.values()) == 1
    assert phases[figures.state.phase] == 1
    loss = federation.store.model(3)
    assert loss is not None
    assert seen["fedtide_model_loss", ("held_out",)] == loss.judged.loss


def test_an_abandoned_round_and_refusals_are_counted_also_after_a_restart(tmp_path: Path) -> None:
    federation = Federation(tmp_path, count=2, quorum=2, devices_min=2)
    federation.add("alpha", "beta")
    for device in federation.devices.values():
        device.runner.held = True
    federation.run(lambda: federation.store.load_state().phase == "backing_off")
    federation.broker.route(federation.topics.up("alpha"), b"junk", retain=False)
    federation.settle()
    federation.kill_coordinator()
    federation.boot_coordinator()
    page = Served(federation)
    seen = page.scrape()
    page.server.stop()
    assert seen["fedtide_rounds_total", ("train", "abandoned")] == 1
    assert seen["fedtide_messages_refused_total", ("malformed",)] == 1


def test_no_device_is_named_and_labels_are_bounded(served: Served) -> None:
    federation = served.federation
    federation.add("alpha", "beta", "gamma")
    federation.run(federation.finished)
    for number in range(3 * REASONS_MAX):
        federation.store.count(f"refused: reason {number}")
    served.show()
    with urlopen(served.url, timeout=10) as answer:
        page = answer.read().decode()
    assert not any(name in page for name in federation.devices)
    refused = [key for key in samples(page) if key[0] == "fedtide_messages_refused_total"]
    assert len(refused) <= REASONS_MAX + 1
    assert sum(samples(page)[key] for key in refused) == 3 * REASONS_MAX
    assert len(page) < 20_000


def test_names_keep_the_rules_of_prometheus(served: Served) -> None:
    served.federation.add("alpha", "beta", "gamma")
    served.federation.run(served.federation.finished)
    served.show()
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    with urlopen(Request(served.url, headers=accept), timeout=10) as answer:
        text = answer.read().decode()
    families = list(open_metrics_families(text))  # type: ignore[no-untyped-call]
    ours = [family for family in families if family.name.startswith("fedtide_")]
    assert len(ours) > 25
    for family in ours:
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_ms", "_ratio_total")), family.name
        assert family.type != "unknown", family.name


def test_figures_are_asked_for_once_and_a_busy_coordinator_is_shown_as_it_was(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH_S", 0.0)
    monkeypatch.setattr(metrics, "ANSWER_S", 0.05)
    first = served.scrape()
    assert served.asked.is_set()
    served.asked.clear()
    second = served.scrape()
    assert not served.asked.is_set(), "it is still being waited for"
    age = ("fedtide_snapshot_age_seconds", ())
    assert second[age] > first[age] > 0
    served.show()
    served.scrape()
    assert served.asked.is_set()


def test_before_the_first_figures_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "ANSWER_S", 0.05)
    config = listening(Federation(tmp_path).config)
    server = MetricsServer(config, Traffic(), lambda: None)
    try:
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"http://{config.metrics.listen}/metrics", timeout=10)
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://{config.metrics.listen}/etc/passwd", timeout=10)
    finally:
        server.stop()


def test_who_connects_and_says_nothing_makes_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times as many as there is room for: the oldest are cut, a real scrape is answered."""
    monkeypatch.setattr(metrics._Page, "timeout", 60.0)
    monkeypatch.setattr(metrics, "CONNECTION_S", 60.0)
    address = served.config.metrics.address()
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(address, timeout=10))
            for _ in range(10 * CONNECTIONS_MAX)
        ]
        for link in silent:
            link.send(b"GET /metr")
        assert silent[0].recv(100) == b"", "cut"
        assert served.scrape()["fedtide_build_info", (__version__,)] == 1
        assert threading.active_count() < 2 * CONNECTIONS_MAX + 10


def test_who_is_slow_is_cut_by_age(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._Page, "timeout", 60.0)
    monkeypatch.setattr(metrics, "CONNECTION_S", 0.1)
    with socket.create_connection(served.config.metrics.address(), timeout=10) as link:
        link.send(b"GET /")
        assert link.recv(100) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [b"\0\xff" * 500 + b"\n\n", b"GET " + b"/" * 100_000, b"BREW /metrics HTTP/1.1\r\n\r\n"],
)
def test_junk_gets_an_error_or_nothing(served: Served, request_bytes: bytes) -> None:
    # It may be cut while it is still talking.
    with (
        socket.create_connection(served.config.metrics.address(), timeout=10) as link,
        suppress(OSError),
    ):
        link.sendall(request_bytes)
        link.shutdown(socket.SHUT_WR)
        assert not link.recv(12).endswith(b"200")
    assert served.scrape()


def test_a_port_in_use_is_a_message(served: Served) -> None:
    with pytest.raises(
        FedtideError, match=r"127.0.0.1:\d+' cannot be listened at: Address already"
    ) as caught:
        MetricsServer(served.config, Traffic(), lambda: None)
    assert caught.value.exit_code != ConfigError.exit_code, "systemd would not try again"


@pytest.mark.parametrize(
    "listen",
    ["9464", ":9464", "127.0.0.1:", "127.0.0.1:0", "example.org:1", "::1:x", "[::1]:70000"],
)
def test_an_address_that_is_none(listen: str) -> None:
    with pytest.raises(ValueError, match="expected ADDRESS:PORT"):
        MetricsConfig(listen=listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "192.0.2.1:9464", "[::]:9464"])
def test_a_public_address_has_to_be_meant(listen: str) -> None:
    with pytest.raises(ValueError, match=r"metrics\.public = true"):
        MetricsConfig(listen=listen)
    assert MetricsConfig(listen=listen, public=True).address()[1] == 9464


def test_localhost_and_ipv6() -> None:
    assert MetricsConfig(listen="localhost:1").address() == ("127.0.0.1", 1)
    assert MetricsConfig(listen="[::1]:1").address() == ("::1", 1)


def test_traffic_is_counted() -> None:
    broker, traffic = MemoryBroker(), Traffic()
    heard: list[LinkEvent] = []
    link = CountedTransport(MemoryTransport(broker, traffic.counting(heard.append)), traffic)
    assert link.publish("a", b"lost") is None
    link.start()
    link.subscribe(["a"])
    link.publish("a", b"12345")
    assert (traffic.sent_messages, traffic.sent_bytes) == (1, 5)
    assert (traffic.received_messages, traffic.received_bytes) == (1, 5)
    assert traffic.connected
    assert len(heard) > 1
    link.stop()


def test_many_scrapes_at_once_are_one_question(served: Served) -> None:
    questions: list[int] = []
    figuring = metrics.Figuring(lambda: questions.append(1))
    answers: list[float] = []
    threads = [
        threading.Thread(target=lambda: answers.append(figuring.newest()[1])) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    figures = served.show()
    while len(answers) < len(threads):
        figuring.show(figures)
    for thread in threads:
        thread.join(5)
    assert len(questions) <= 2
    assert all(age_s < metrics.FRESH_S + 0.5 for age_s in answers)
