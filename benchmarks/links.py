"""What a slow, far, lossy or broken link costs: one model down and one update up, over each.

A coordinator, Mosquitto, and a device in a process of its own behind a TCP proxy that is the link
(demo/proxy.py; it counts what it carries). For each profile: did both arrive, goodput against the
line's rate, bytes carried against the blob's size, connections lost. `ideal` is the blob's size
over the line's rate; where the line has none, over the rate of a bare TCP stream through the same
proxy. A cut link's ideal counts the time for which it was up.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.link_device import FEDERATION
from benchmarks.measurement import save
from coordinator.config import CoordinatorConfig
from coordinator.ledger import begin_run
from coordinator.service import Service
from coordinator.store import Store
from demo.brokers import COORDINATOR, Broker
from demo.proxy import Line, Proxy
from fedtide.mqtt import MqttTransport
from fedtide.transport import LinkEvent
from fedtide.vectors import encode_vector
from simulator.faults.fake_learning import fake_bundle

ELEMENTS = 1_663_370
"""The paper's MNIST CNN: 6.65 MB."""


class Profile(NamedTuple):
    """A link."""

    line: Line
    keepalive_s: int = 60
    up_s: float = 0.0
    """Up for so long, then down for as long, again and again (0: always up)."""
    size: float = 1.0
    """Share of the model; slow links get less of it, for the shape is the same."""


SLOW = {
    f"{rate} KB/s, keepalive {keepalive} s": Profile(Line(rate * 1000, 100), keepalive, size=size)
    for rate, size in ((20, 0.15), (5, 0.05))
    for keepalive in (60, 5)
}
PROFILES = {
    **SLOW,
    "3G: 100 KB/s, 100 ms": Profile(Line(100_000, 50), size=0.5),
    "satellite: 25 Mbit/s, 600 ms ±50, 2% loss": Profile(Line(3_125_000, 300, 50, 0.02)),
    "5 s up, 5 s down, 100 KB/s": Profile(Line(100_000, 50), up_s=5, size=0.3),
    "5 s up, 5 s down, 20 KB/s": Profile(Line(20_000, 100), up_s=5, size=0.06),
}


class Coordinator:
    """The production service on a thread."""

    def __init__(self, folder: Path, broker: Broker, elements: int) -> None:
        self._folder, self._broker, self._elements = folder, broker, elements
        self._inbox: SimpleQueue[LinkEvent | None] = SimpleQueue()
        self._ready = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the coordinator does not connect"

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as exc:  # noqa: BLE001
            self.failure = exc

    def _serve(self) -> None:
        config = msgspec.convert(
            {
                "federation": FEDERATION,
                "bundle": "unused",
                "state_dir": str(self._folder),
                "rounds": {"count": 1, "cohort_size": 1, "collect_ms": 3_600_000},
                "hello_ms": 30_000,
            },
            CoordinatorConfig,
            dec_hook=lambda kind, value: kind(value),
        )
        store = Store(self._folder)
        bundle = fake_bundle(self._elements)
        model = np.random.default_rng(0).standard_normal(self._elements).astype(np.float32)
        begin_run(store, bundle, FEDERATION, store.blobs.put(encode_vector(model, "f32")), now_ms())
        link = MqttTransport(self._broker.access(COORDINATOR), "links/c", self._inbox.put)
        jobs: list[Any] = []  # never run: the update's receipt is all that is awaited
        service = Service(config, bundle, store, link, jobs.append, str(time.monotonic_ns()))
        service.start(now_ms())
        link.start()
        while True:
            deadline = service.next_deadline_at_ms()
            wait_s = 60.0 if deadline is None else max(0.0, (deadline - now_ms()) / 1000)
            try:
                event = self._inbox.get(timeout=wait_s)
            except Empty:
                service.time_reached(now_ms())
                continue
            if event is None:
                break
            service.link_event(event, now_ms())
            service.time_reached(now_ms())
            self._ready.set()
        link.stop()
        store.close()

    def stop(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)


class Device:
    """The client's process, and what it said."""

    def __init__(self, folder: Path, port: int, broker: Broker, keepalive_s: int) -> None:
        command = [sys.executable, "-m", "benchmarks.link_device", "--folder", str(folder)]
        command += ["--port", str(port), "--keepalive", str(keepalive_s)]
        command += ["--password-file", str(broker.password_file("device"))]
        with (folder.parent / "device.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.said: SimpleQueue[tuple[str, float]] = SimpleQueue()
        self.losses: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                word, at_s = line.split()
                if word.startswith("lost"):
                    self.losses.append(word)
                self.said.put((word, float(at_s)))

    def wait(self, word: str, until_s: float) -> float:
        """When it said that."""
        while True:
            said, at_s = self.said.get(timeout=max(0.01, until_s - time.monotonic()))
            if said == word:
                return at_s

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=5)


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@contextmanager
def flapping(proxy: Proxy, up_s: float) -> Iterator[None]:
    """Up and down until the end."""
    end = threading.Event()

    def flap() -> None:
        for action in itertools.cycle((proxy.cut, proxy.heal)):
            if end.wait(up_s):
                return
            action()

    thread = threading.Thread(target=flap, daemon=True)
    if up_s:
        thread.start()
    try:
        yield
    finally:
        end.set()
        if up_s:
            thread.join()
        proxy.heal()


def measure(profile: Profile, *, patience: float = 4.0) -> dict[str, Any]:
    """One model down, one update up; given up after `patience` times the ideal and a minute."""
    elements = int(ELEMENTS * profile.size)
    size = elements * 4
    rate = profile.line.bytes_s if not profile.line.loss else bare_rate(profile.line, size)
    ideal_s = size / rate * (2 if profile.up_s else 1)
    folder = Path(tempfile.mkdtemp(prefix="fedtide-links-"))
    figures: dict[str, Any] = {"bytes": size, "ideal_s": round(ideal_s, 1)}
    with (
        Broker("mosquitto", folder / "broker", (COORDINATOR, "device")) as broker,
        Proxy(broker.port, line=profile.line) as proxy,
    ):
        coordinator = Coordinator(folder / "coordinator", broker, elements)
        (folder / "device").mkdir()
        device = Device(folder / "device", proxy.port, broker, profile.keepalive_s)
        limit_s = patience * ideal_s + 60
        try:
            started_s = device.wait("connected", time.monotonic() + 30)
            with flapping(proxy, profile.up_s):
                for way, word, is_uplink in (("down", "fetched", False), ("up", "receipt", True)):
                    before, lost = proxy.carried[is_uplink], len(device.losses)
                    connections = proxy.connections
                    try:
                        at_s = device.wait(word, time.monotonic() + limit_s)
                    except Empty:
                        at_s = 0.0
                    figures[way] = {
                        "seconds": round(at_s - started_s, 1) if at_s else None,
                        "goodput_of_ideal": round(ideal_s / (at_s - started_s), 3) if at_s else 0,
                        "extra_bytes": proxy.carried[is_uplink] - before - size,
                        "reconnects": proxy.connections - connections,
                    }
                    figures[way]["reasons"] = sorted(set(device.losses[lost:]))[:3]
                    if not at_s:
                        break
                    started_s = at_s
        finally:
            device.kill()
            coordinator.stop()
            if coordinator.failure is not None:
                raise coordinator.failure
    shutil.rmtree(folder)
    return figures


def bare_rate(line: Line, size: int) -> float:
    """Bytes per second of a bare TCP stream over such a line."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Proxy(server.getsockname()[1], line=line) as proxy,
    ):

        def send() -> None:
            with socket.create_connection(("127.0.0.1", proxy.port)) as link:
                link.sendall(b"x" * size)

        started_s = time.monotonic()
        threading.Thread(target=send, daemon=True).start()
        far, _ = server.accept()
        with far:
            while far.recv(65536):
                pass
        return size / (time.monotonic() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="profiles whose name contains this")
    parser.add_argument("--size", type=float, help="share of the 6.65 MB")
    parser.add_argument("--save", action="store_true", help="write results/links.json")
    given = parser.parse_args()
    chosen = {
        name: profile._replace(size=given.size or profile.size)
        for name, profile in PROFILES.items()
        if given.only in name
    }
    with ThreadPoolExecutor(len(chosen)) as pool:  # they wait nearly all of the time
        figures = dict(zip(chosen, pool.map(measure, chosen.values()), strict=True))
    for name, ways in figures.items():
        print(f"{name:44}", *(ways[way] for way in ("down", "up") if way in ways), sep="\n    ")
    if given.save:
        save("links", figures, {})


if __name__ == "__main__":
    main()
