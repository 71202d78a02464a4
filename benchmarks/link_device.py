"""A device for `benchmarks/links.py`: the production session and transport, and no training.

Each word on its standard output is an event and when it happened (seconds of the machine's
monotonic clock): `connected`, `fetched` (the model is here), `offered`, `receipt`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from edge_client.session import Session
from edge_client.session_events import TaskDone
from edge_client.speaking import will_of
from edge_client.worker import update_id
from fedtide.bundle import Bundle
from fedtide.config import BrokerConfig
from fedtide.measures import Measure, Metrics
from fedtide.messages import Envelope, Receipt, Task, Update, decode
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import Connected, Disconnected, LinkEvent, Received

FEDERATION = "links"


class Runner:
    """Makes an update of the model's size at once."""

    runtimes: tuple[str, ...] = ("portable",)
    steps_count = 0
    examples_count = 10

    def __init__(self) -> None:
        self.done: TaskDone | None = None
        self.session: Session | None = None

    def check(self, bundle: Bundle) -> None:
        """No data to check."""

    def pause(self, paused: bool) -> None:
        """It has no conditions."""

    def drop(self) -> None:
        """Nothing runs."""
        self.done = None

    def start(self, task: Task, bundle: Bundle, model: bytes) -> None:  # noqa: ARG002
        assert self.session is not None
        say("fetched")
        blob = None
        if task.kind == "train":
            values = np.random.default_rng(task.round_id).standard_normal(len(model) // 4)
            blob = self.session.blobs.put((values * 0.01).astype("<f4").tobytes())
        self.done = TaskDone(
            Update(
                update_id=update_id(task, "device"),
                run_id=task.run_id,
                round_id=task.round_id,
                kind=task.kind,
                model=task.model.digest,
                examples=10,
                blob=blob,
                encoding=task.encoding,
                steps=1,
                training_ms=1,
                held_out=Metrics(4, {"loss": Measure(2.0, 4.0), "accuracy": Measure(3.0, 4.0)}),
            )
        )


def say(what: str) -> None:
    print(what, f"{time.monotonic():.3f}", flush=True)


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--keepalive", type=int, default=60)
    parser.add_argument("--protocol", default="auto")
    given = parser.parse_args()
    config = BrokerConfig(
        "127.0.0.1",
        given.port,
        protocol=given.protocol,
        username="device",
        password_file=given.password_file,
        keepalive_s=given.keepalive,
        reconnect_ms_max=1_000,
    )
    topics = Topics(FEDERATION)
    inbox: SimpleQueue[LinkEvent] = SimpleQueue()
    link = MqttTransport(config, "links/device", inbox.put, will_of(topics, "device"))
    runner = Runner()
    session = Session("device", topics, given.folder, link, runner)
    runner.session = session
    session.start(now_ms())
    link.start()
    while True:
        deadline = session.next_deadline_at_ms()
        wait_s = 60.0 if deadline is None else max(0.0, (deadline - now_ms()) / 1000)
        try:
            event = inbox.get(timeout=wait_s)
        except Empty:
            session.time_reached(now_ms())
            continue
        if isinstance(event, Connected):
            say("connected")
        elif isinstance(event, Disconnected):
            say(f"lost({event.reason.replace(' ', '_')})")
        elif isinstance(event, Received):
            envelope = decode(event.payload)
            if isinstance(envelope, Envelope) and isinstance(envelope.body, Receipt):
                say("receipt")
        session.link_event(event, now_ms())
        if runner.done is not None:
            done, runner.done = runner.done, None
            say("offered")
            session.task_event(done, now_ms())
        session.time_reached(now_ms())


if __name__ == "__main__":
    main()
