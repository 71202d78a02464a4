"""How fast do 100 clients fetch the 6.65 MB model from one publication, at what cost to the broker?

The coordinator's own publisher leaves the model at Mosquitto as retained chunks, once. Then 100
`mosquitto_sub` processes subscribe at the same moment; the time runs until the last byte has
reached the last of them, and every byte is counted. Beside it: fedtide's own download code, ten
real downloads at once in one process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from benchmarks.measurement import save
from coordinator.publishing import Publisher
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
    options = parser.parse_args()
    times, own_times = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Broker("mosquitto", folder / "broker", (COORDINATOR, "device")) as broker:
            topics = Topics("bench")
            store = BlobStore(folder / "coordinator")
            ref = store.put(np.random.default_rng(0).bytes(MODEL_BYTES))
            publish(broker, store, ref, topics)
            for _ in range(options.runs):
                times.append(fan_out(broker, ref, topics))
            peak = peak_bytes(broker)
            for number in range(options.runs):
                own_times.append(own_downloads(broker, ref, topics, folder / f"run{number}"))
    save(
        "model_fan_out",
        {
            "clients": CLIENTS,
            "model_bytes": MODEL_BYTES,
            "seconds_median": round(statistics.median(times), 3),
            "broker_peak_resident_mb": round(peak / 1e6, 1),
            "ten_fedtide_downloads_seconds_median": round(statistics.median(own_times), 3),
        },
        {"seconds": times, "ten_fedtide_downloads_seconds": own_times},
    )


def connect(
    broker: Broker, user: str, client_id: str
) -> tuple[MqttTransport, SimpleQueue[LinkEvent]]:
    inbox: SimpleQueue[LinkEvent] = SimpleQueue()
    link = MqttTransport(broker.access(user), client_id, inbox.put)
    link.start()
    while not isinstance(inbox.get(timeout=WAIT_S), Connected):
        pass
    return link, inbox


def publish(broker: Broker, store: BlobStore, ref: BlobRef, topics: Topics) -> None:
    """One publication; returns when the broker has all of it."""
    link, inbox = connect(broker, COORDINATOR, "publisher")
    publisher = Publisher(store, link, topics)
    publisher.offer([ref])
    for _ in split([(0, blocks_count(ref.size_bytes))]):
        event = inbox.get(timeout=WAIT_S)
        assert isinstance(event, Delivered)
        publisher.delivered(event.token)
    link.stop()


def fan_out(broker: Broker, ref: BlobRef, topics: Topics) -> float:
    """Seconds until every one of 100 subscribers has every byte."""
    chunks = len(split([(0, blocks_count(ref.size_bytes))]))
    password = broker.password_file("device").read_text().strip()
    command = [
        "mosquitto_sub", "-h", HOST, "-p", str(broker.port), "-u", "device", "-P", password,
        "-t", f"{topics.root}/blob/{ref.digest}/+", "-C", str(chunks), "-q", "0", "-N",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name) / str(number) for number in range(CLIENTS)]
        started = time.monotonic()
        children = []
        for number, output in enumerate(outputs):
            with output.open("wb") as file:
                identity = ["-i", f"subscriber-{number}"]
                children.append(subprocess.Popen([*command, *identity], stdout=file))
        for child in children:
            assert child.wait(WAIT_S) == 0
        seconds = time.monotonic() - started
        assert all(output.stat().st_size > MODEL_BYTES for output in outputs)
    return seconds


def own_downloads(broker: Broker, ref: BlobRef, topics: Topics, folder: Path) -> float:
    """Seconds for ten downloads by fedtide's own code, each with a link and a store of its own."""
    downloads = []
    for number in range(10):
        link, inbox = connect(broker, "device", f"device-{number}")
        store = BlobStore(folder / str(number))
        downloads.append((Download(ref, 7, store, link, topics), link, inbox))
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

    wait_for(all_done, "ten downloads", WAIT_S)
    seconds = time.monotonic() - started
    for _, link, _ in downloads:
        link.stop()
    return seconds


def peak_bytes(broker: Broker) -> int:
    """The broker's own high-water mark."""
    status = Path(f"/proc/{broker.process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
