"""Metrics of a real coordinator: scraped while it works, and by scrapers that mean no good."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from demo.brokers import COORDINATOR, Broker, find_broker, free_port
from demo.local import LocalFederation, wait_for
from tests import bundles
from tests.end_to_end.test_bad_input import good_data, run
from tests.end_to_end.test_federation import DEVICE_PYTHON, WAIT_S, assert_clean, count, query
from tests.unit.test_metrics import Samples, samples

CUT = (OSError, HTTPException)
"""What a client meets whose connection had to make room."""


@contextmanager
def vandals(port: int) -> Iterator[list[int]]:
    """Connections that say half a request, that read no answer, and that ask without end; how many
    answers the last have had."""
    ended, answers = threading.Event(), [0]

    def hammer() -> None:
        while not ended.is_set():
            with suppress(*CUT), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                answers[0] += len(page.read()) > 0

    def dawdle(request: bytes) -> None:
        while not ended.is_set():
            with suppress(OSError), ExitStack() as stack:
                for _ in range(20):
                    link = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                    link.send(request)
                ended.wait(0.2)

    threads = [
        threading.Thread(target=hammer),
        threading.Thread(target=dawdle, args=(b"GET /met",)),
        threading.Thread(target=dawdle, args=(b"GET /metrics HTTP/1.1\r\n\r\n",)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join(10)


def test_a_federation_is_watched_and_disturbed(tmp_path: Path) -> None:
    """What the page says at the end is what the store says; rounds went on all the time."""
    port = free_port()
    with (
        Broker(find_broker("mosquitto"), tmp_path / "broker", (COORDINATOR, "alpha")) as mosquitto,
        LocalFederation(tmp_path / "run", mosquitto) as local,
    ):
        local.add_coordinator(
            bundles.build("tiny_mlp"),
            rounds={"count": 100_000, "cohort_size": 1},
            metrics={"listen": f"127.0.0.1:{port}"},
        )
        local.add_device("alpha", good_data(tmp_path), DEVICE_PYTHON)
        local.start()

        def scrape() -> Samples:
            with suppress(*CUT), urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                return samples(page.read().decode())
            return {}

        def version() -> float:
            return scrape().get(("fedtide_model_version", ()), 0)

        wait_for(lambda: version() >= 2, "a model on the page", WAIT_S)
        with vandals(port) as answers:
            # Who floods the page may keep others from it, but not the rounds from going on.
            newest = "SELECT MAX(version) FROM models"
            reached = count(local, newest) + 10
            wait_for(
                lambda: count(local, newest) >= reached and answers[0] > 5, "ten models", WAIT_S
            )
        seen: Samples = {}

        def is_shown() -> bool:  # who flooded the page may still be in its queue
            seen.update(scrape())
            return bool(seen)

        wait_for(is_shown, "the page", WAIT_S)
        assert seen["fedtide_broker_connected", ()] == 1
        assert seen["fedtide_received_bytes_total", ()] > 1_000
        assert seen["fedtide_sent_bytes_total", ()] > 1_000
        assert seen["fedtide_devices_online", ()] == 1
        assert seen["fedtide_snapshot_age_seconds", ()] < 5
        done = seen["fedtide_rounds_total", ("train", "done")]
        assert done == seen["fedtide_model_version", ()]
        assert seen["fedtide_updates_total", ("in time", "accepted")] >= done
        assert only_listener(local.coordinator.process_id or 0) == [f"127.0.0.1:{port}"]
        local.coordinator.stop()
        assert query(local, f"SELECT count(*) >= {done} FROM models WHERE version > 0") == [(1,)]
        assert_clean(local)


def only_listener(pid: int) -> list[str]:
    """Where a process listens (IPv4), as the kernel says."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = [line[1] for line in lines if line[3] == "0A" and line[9] in inodes]
    return sorted(
        f"{'.'.join(str(byte) for byte in bytes.fromhex(host)[::-1])}:{int(number, 16)}"
        for host, number in (address.split(":") for address in found)
    )


def test_a_port_in_use_ends_the_coordinator_with_a_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = tmp_path / "coordinator.toml"
        config.write_text(
            f'federation = "f"\nbundle = "{bundles.build("tiny_mlp")}"\nstate_dir = "state"\n'
            f'[rounds]\ncohort_size = 1\n[metrics]\nlisten = "127.0.0.1:{port}"\n'
        )
        done = run("coordinator", "--config", str(config))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}' cannot be listened at: Address already in use" in done.stderr
    config.write_text(config.read_text().replace("127.0.0.1", "0.0.0.0"))
    done = run("coordinator", "--config", str(config))
    assert done.returncode == 2
    assert "metrics.public = true" in done.stderr
