"""A simulated device: the production session on its state folder, and modelled training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edge_client.session import Session
from edge_client.session_events import EpochsSaved, TaskDone, TaskFailed, TaskHeld
from edge_client.speaking import will_of
from edge_client.worker import update_id
from fedtide.bundle import Bundle
from fedtide.errors import StateError
from fedtide.failpoints import reach
from fedtide.messages import Task, Update
from fedtide.transport import LinkEvent
from fedtide.vectors import encode_vector
from simulator.faults.fake_learning import HELD_OUT, learn
from simulator.faults.process import Process
from simulator.faults.settings import DeviceSettings

if TYPE_CHECKING:
    from simulator.faults.world import World

Twist = Callable[[Update, bytes], tuple[Update, bytes]]
"""What a hostile device makes of its update and the content."""


class ModelledTraining:
    """An `edge_client.session.TaskRunner` that takes virtual time."""

    runtimes: tuple[str, ...] = ("portable",)

    def __init__(self, device: Device) -> None:
        self.examples_count = device.settings.examples
        self.steps_count = 0
        self._device = device
        self._number = 0
        self._busy = False

    def check(self, bundle: Bundle) -> None:
        """Local data fit."""

    def start(self, task: Task, bundle: Bundle, model: bytes) -> None:  # noqa: ARG002
        """Begin; a task that is being done is dropped."""
        device = self._device
        self._number += 1
        self._busy = True
        reach("client: training started")
        if task.kind == "train":
            arguments = (device.life, self._epoch, self._number, task)
            device.world.agenda.after(device.train_ms() // 2, device.enter, *arguments)
        self._later(device.train_ms(), task, model)

    def _later(self, delay_ms: int, task: Task, model: bytes) -> None:
        device = self._device
        arguments = (device.life, self._finish, self._number, task, model)
        device.world.agenda.after(delay_ms, device.enter, *arguments)

    def _epoch(self, number: int, task: Task) -> None:
        """Half of the work is safe. (That it is not done again is not modelled.)"""
        if self._busy and number == self._number:
            reach("client: progress saved")
            device = self._device
            saved = EpochsSaved(task.run_id, task.round_id, 1)
            device.session.task_event(saved, device.now_ms())

    def pause(self, paused: bool) -> None:
        """Simulated devices have no conditions."""

    def drop(self) -> None:
        """Stop what is being done."""
        self._busy = False

    def _finish(self, number: int, task: Task, model: bytes) -> None:
        if not self._busy or number != self._number:
            return
        device = self._device
        self._busy = False
        if device.declines():
            failed = TaskFailed(task.run_id, task.round_id, "the battery is low")
            device.session.task_event(failed, device.now_ms())
            return
        reach("client: training ended")
        update, content = device.learned(task, model)
        if content:
            try:
                blob = device.session.blobs.put(content)
            except StateError as exc:
                if not exc.no_room:
                    raise
                self._busy = True  # as the worker does: what was learned waits for room
                held = TaskHeld(task.run_id, task.round_id, "the disk is full")
                device.session.task_event(held, device.now_ms())
                self._later(5_000, task, model)
                return
            if device.twist is None:
                assert blob == update.blob
            reach("client: update written")
        device.session.task_event(TaskDone(update), device.now_ms())


class Device(Process):
    """See the module."""

    def __init__(self, world: World, settings: DeviceSettings, installation: str = "") -> None:
        name = settings.name + installation
        client_id = f"device/{settings.name}"
        super().__init__(world, name, client_id, world.folder / name, settings.speed)
        self.device_id = settings.name
        self.settings = settings
        self.slow_factor = 1
        self.declining = 0.0
        self.twist: Twist | None = None
        self.session: Session
        self._durable: object = None

    def _start(self) -> None:
        topics = self.world.topics
        self.link.will = will_of(topics, self.device_id)
        runner = ModelledTraining(self)
        self.session = Session(
            self.device_id,
            topics,
            self.folder,
            self.link,
            runner,
            new_installation=lambda: self.name,  # chance would be in the transcript
        )
        self.session.start(self.now_ms())

    def _link_event(self, event: LinkEvent, at_ms: int) -> None:
        self.session.link_event(event, at_ms)

    def _time_reached(self, at_ms: int) -> None:
        self.session.time_reached(at_ms)

    def _next_deadline_at_ms(self) -> int | None:
        return self.session.next_deadline_at_ms()

    def _stopped(self) -> None:
        self._durable = None

    def _goodbye(self, why: str) -> None:
        with contextlib.suppress(AttributeError):  # it may have failed before there was one
            self.session.goodbye("ended by an error")
        super()._goodbye(why)

    def _observed(self) -> None:
        self.world.checks.device_looked_at(self)

    # ---- the model of training ----

    def train_ms(self) -> int:
        """How long a task takes now."""
        return self.settings.train_ms * self.slow_factor + self.rng.randrange(20)

    def declines(self) -> bool:
        """Whether this task is declined."""
        return self.declining > 0 and self.rng.random() < self.declining

    def learned(self, task: Task, model: bytes) -> tuple[Update, bytes]:
        """The update that answers a task, and its content (empty: an evaluation)."""
        content = b""
        blob = None
        if task.kind == "train":
            delta = learn(f"{self.name}/{task.plan.seed}", model, len(model) // 4)
            content = encode_vector(np.asarray(delta), task.encoding)
            blob = self.world.ref_of(content)
        update = Update(
            update_id=update_id(task, self.device_id),
            run_id=task.run_id,
            round_id=task.round_id,
            kind=task.kind,
            model=task.model.digest,
            examples=self.settings.examples,
            blob=blob,
            encoding=task.encoding,
            steps=1,
            training_ms=5,
            held_out=HELD_OUT,
        )
        return (update, content) if self.twist is None else self.twist(update, content)
