"""Several devices in one process: the production session and link, with training that is a pause.

    python -m benchmarks.soak_clients CONFIG.json

The session, its state on disk and its MQTT link are those of `fedtide client`; only the training is
replaced. Each update that is made is noted in `FOLDER/made` before it is offered.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from edge_client.runner import monotonic_ms
from edge_client.session import Session
from edge_client.session_events import TaskDone
from edge_client.speaking import will_of
from edge_client.worker import update_id
from fedtide.bundle import Bundle
from fedtide.config import BrokerConfig
from fedtide.files import locked
from fedtide.logs import FloodGate, LineFormatter
from fedtide.messages import Task, Update
from fedtide.mqtt import MqttTransport
from fedtide.topics import Topics
from fedtide.transport import LinkEvent
from fedtide.vectors import encode_vector
from simulator.faults.fake_learning import HELD_OUT, learn

WAIT_S = 1.0
"""Longest wait between two looks at the clock."""


class Pause:
    """An `edge_client.session.TaskRunner` that waits, and then learns by a formula."""

    runtimes: tuple[str, ...] = ("portable",)
    steps_count = 0
    examples_count = 10

    def __init__(self, train_ms: tuple[int, int]) -> None:
        self._train_ms = train_ms
        self.due: tuple[int, Task, bytes] | None = None

    def check(self, bundle: Bundle) -> None:
        """Local data fit."""

    def start(self, task: Task, bundle: Bundle, model: bytes) -> None:  # noqa: ARG002
        """Begin."""
        self.due = (monotonic_ms() + random.randint(*self._train_ms), task, model)

    def pause(self, paused: bool) -> None:
        """These devices have no conditions."""

    def drop(self) -> None:
        """Stop."""
        self.due = None


class Device:
    """One device, as `edge_client.runner` puts it together."""

    def __init__(
        self,
        config: dict[str, Any],
        name: str,
        inbox: SimpleQueue[tuple[Device, LinkEvent]],
    ) -> None:
        self.name = name
        self.folder = Path(config["folder"]) / name
        topics = Topics(config["federation"])
        access = BrokerConfig(
            **{
                **config["broker"],
                "username": name,
                "password_file": Path(config["passwords"]) / f"{name}.password",
            }
        )
        self.runner = Pause(tuple(config["train_ms"]))
        self.link = MqttTransport(
            access,
            f"{config['federation']}/{name}",
            lambda event: inbox.put((self, event)),
            will_of(topics, name),
        )
        self.session = Session(name, topics, self.folder, self.link, self.runner)

    def start(self) -> None:
        """Go on where the last life ended."""
        self.session.start(monotonic_ms())
        self.link.start()

    def wake_at_ms(self) -> int:
        """When something is to be done."""
        deadline = self.session.next_deadline_at_ms()
        due = None if self.runner.due is None else self.runner.due[0]
        return min(at_ms for at_ms in (deadline, due, monotonic_ms() + 10_000) if at_ms is not None)

    def tend(self) -> None:
        """Do what is due."""
        due = self.runner.due
        if due is not None and due[0] <= monotonic_ms():
            self.runner.due = None
            self._learn(due[1], due[2])
        self.session.time_reached(monotonic_ms())

    def _learn(self, task: Task, model: bytes) -> None:
        blob = None
        if task.kind == "train":
            delta = learn(self.name, model, len(model) // 4)
            blob = self.session.blobs.put(encode_vector(delta, task.encoding))
        update = Update(
            update_id=update_id(task, self.name),
            run_id=task.run_id,
            round_id=task.round_id,
            kind=task.kind,
            model=task.model.digest,
            examples=10,
            blob=blob,
            encoding=task.encoding,
            steps=1,
            training_ms=5,
            held_out=HELD_OUT,
        )
        with (self.folder / "made").open("ab") as file:
            file.write(msgspec.json.encode([update.update_id, update.round_id]) + b"\n")
        self.session.task_event(TaskDone(update), monotonic_ms())


def main(path: Path) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(FloodGate())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    config = json.loads(path.read_text())
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    inbox: SimpleQueue[tuple[Device, LinkEvent]] = SimpleQueue()
    with locked(Path(config["folder"]) / config["devices"][0], "soak"):
        devices = [Device(config, name, inbox) for name in config["devices"]]
        for device in devices:
            device.start()
        while not stopped:
            soonest = min(device.wake_at_ms() for device in devices)
            try:
                wait_s = min(WAIT_S, max(0.0, (soonest - monotonic_ms()) / 1000))
                device, event = inbox.get(timeout=wait_s)
                device.session.link_event(event, monotonic_ms())
            except Empty:
                pass
            for device in devices:
                device.tend()
        for device in devices:
            device.session.goodbye("stopped")
        time.sleep(0.2)
        for device in devices:
            device.link.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
