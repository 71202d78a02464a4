"""How fast do 100 clients fetch the 6.65 MB model from one publication, at what cost to the broker?

Three ways, each on a Mosquitto of its own, whose high-water mark (VmHWM) is read at the end:

- live: 100 `mosquitto_sub` wait; the coordinator's own publisher publishes the chunks once; the
  time runs from its first message to the last byte at the last subscriber.
- retained: the chunks lie at the broker; 100 `mosquitto_sub` start and subscribe to all of them at
  once; the time includes starting their processes.
- fedtide: the same, with 100 of fedtide's own downloads, each with a link and a store, in one
  Python process: they pull a few chunks at a time, check and write them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from benchmarks.measurement import save
from coordinator.publishing import GRID_BLOCKS, Publisher
from demo.brokers import COORDINATOR, HOST, Broker
from demo.local import wait_for
from edge_client.download import Download
from fedtide.blobs import BlobStore, blocks_count, split
from fedtide.messages import BlobRef, Chunk, Envelope, decode
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Connected, Delivered, LinkEvent, Received

MODEL_BYTES = 1_663_370 * 4
CLIENTS, RUNS = 100, 5
WAIT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs
    figures: dict[str, float] = {"clients": CLIENTS, "model_bytes": MODEL_BYTES}
    samples = {}
    for way in (live, retained, fedtide):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = BlobStore(folder / "coordinator")
            ref = store.put(np.random.default_rng(0).bytes(MODEL_BYTES))
            with Broker("mosquitto", folder / "broker", (COORDINATOR, "device")) as broker:
                seconds = [way(broker, store, ref, folder / str(run)) for run in range(runs)]
                peak = peak_bytes(broker)
        figures[f"{way.__name__}_seconds_median"] = round(statistics.median(seconds), 3)
        figures[f"{way.__name__}_broker_peak_mb"] = round(peak / 1e6, 1)
        samples[f"{way.__name__}_seconds"] = seconds
    save("model_fan_out", figures, samples)


def live(broker: Broker, store: BlobStore, ref: BlobRef, folder: Path) -> float:
    """Subscribers wait for the publication. Each run is another federation."""
    topics = Topics(f"bench-{folder.name}")
    link, inbox = connect(broker, COORDINATOR, "publisher")
    link.publish(f"{topics.root}/blob/ready/0", b"ready", retain=True)
    assert isinstance(inbox.get(timeout=WAIT_S), Delivered)
    with subscribers(broker, ref, topics, folder, extra=1) as (children, outputs):
        wait_for(lambda: all(path.stat().st_size for path in outputs), "subscriptions", WAIT_S)
        started = time.monotonic()
        publisher = publish(link, inbox, store, ref, topics)
        for child in children:
            assert child.wait(WAIT_S) == 0
        seconds = time.monotonic() - started
        assert all(path.stat().st_size > MODEL_BYTES for path in outputs)
    publisher.offer([])  # withdrawn: the next run starts from an empty broker
    link.stop()
    return seconds


def retained(broker: Broker, store: BlobStore, ref: BlobRef, folder: Path) -> float:
    """The publication lies at the broker."""
    topics = Topics("bench")
    link, inbox = connect(broker, COORDINATOR, "publisher")
    publish(link, inbox, store, ref, topics)
    link.stop()
    started = time.monotonic()
    with subscribers(broker, ref, topics, folder, extra=0) as (children, outputs):
        for child in children:
            assert child.wait(WAIT_S) == 0
        seconds = time.monotonic() - started
        assert all(path.stat().st_size > MODEL_BYTES for path in outputs)
    return seconds


def fedtide(broker: Broker, store: BlobStore, ref: BlobRef, folder: Path) -> float:
    """The same with our own downloads."""
    topics = Topics("bench")
    link, inbox = connect(broker, COORDINATOR, "publisher")
    publish(link, inbox, store, ref, topics)
    link.stop()
    downloads = []
    for number in range(CLIENTS):
        link, inbox = connect(broker, "device", f"device-{number}")
        own = BlobStore(folder / str(number))
        downloads.append((Download(ref, GRID_BLOCKS, own, link, topics), link, inbox))
    started = time.monotonic()
    for download, _, _ in downloads:
        download.start(0)

    def all_done() -> bool:
        for download, _, inbox in downloads:
            while not inbox.empty():
                event = inbox.get()
                if isinstance(event, Received):
                    envelope = decode(event.payload)
                    assert isinstance(envelope, Envelope)
                    assert isinstance(envelope.body, Chunk)
                    assert download.chunk(envelope.body, 0) is None
        return all(download.done for download, _, _ in downloads)

    wait_for(all_done, "the downloads", WAIT_S)
    seconds = time.monotonic() - started
    for _, link, _ in downloads:
        link.stop()
    return seconds


def connect(
    broker: Broker, user: str, client_id: str
) -> tuple[MqttTransport, SimpleQueue[LinkEvent]]:
    inbox: SimpleQueue[LinkEvent] = SimpleQueue()
    link = MqttTransport(broker.access(user), client_id, inbox.put)
    link.start()
    while not isinstance(inbox.get(timeout=WAIT_S), Connected):
        pass
    return link, inbox


def publish(
    link: MqttTransport,
    inbox: SimpleQueue[LinkEvent],
    store: BlobStore,
    ref: BlobRef,
    topics: Topics,
) -> Publisher:
    """One publication; returns when the broker has all of it."""
    publisher = Publisher(store, link, topics)
    publisher.offer([ref])
    for _ in split([(0, blocks_count(ref.size_bytes))], GRID_BLOCKS):
        event = inbox.get(timeout=WAIT_S)
        assert isinstance(event, Delivered)
        publisher.delivered(event.token, event.waited_ms)
    return publisher


@contextmanager
def subscribers(
    broker: Broker, ref: BlobRef, topics: Topics, folder: Path, extra: int
) -> Iterator[tuple[list[subprocess.Popen[bytes]], list[Path]]]:
    """100 processes that end when they have every chunk, and `extra` messages on `blob/ready`."""
    chunks = len(split([(0, blocks_count(ref.size_bytes))], GRID_BLOCKS))
    password = broker.password_file("device").read_text().strip()
    command = [
        "mosquitto_sub", "-h", HOST, "-p", str(broker.port), "-u", "device", "-P", password,
        "-t", f"{topics.root}/blob/{ref.digest}/+", "-t", f"{topics.root}/blob/ready/+",
        "-C", str(chunks + extra), "-q", "1", "-N",
    ]  # fmt: skip
    folder.mkdir()
    outputs = [folder / str(number) for number in range(CLIENTS)]
    children = []
    for number, output in enumerate(outputs):
        with output.open("wb") as file:
            identity = ["-i", f"subscriber-{number}"]
            children.append(subprocess.Popen([*command, *identity], stdout=file))
    yield children, outputs
    for output in outputs:
        output.unlink()


def peak_bytes(broker: Broker) -> int:
    """The broker's own high-water mark."""
    status = Path(f"/proc/{broker.process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
