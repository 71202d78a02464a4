"""A federation in memory under virtual time: the production service and sessions, a memory broker.

Devices "train" by a fixed function of the model, so that results can be computed by hand. Nothing
sleeps: `run` moves the clock to the next deadline.
"""

from __future__ import annotations

import json
import weakref
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from coordinator.aggregate_job import AggregateJob, run_aggregate_job
from coordinator.config import CoordinatorConfig
from coordinator.ledger import begin_run
from coordinator.service import Service
from coordinator.store import Store
from edge_client.session import Session
from edge_client.session_events import TaskDone
from edge_client.speaking import will_of
from edge_client.worker import update_id
from fedtide.blobs import blocks_count, split
from fedtide.bundle import Bundle, sha256_hex
from fedtide.limits import BLOCK_BYTES
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.messages import (
    AnyMessage,
    BlobRef,
    Chunk,
    Envelope,
    Hello,
    Task,
    Update,
    decode,
    encode,
)
from fedtide.topics import Topics
from fedtide.transport import LinkEvent, Received
from fedtide.vectors import Vector, decode_vector, encode_vector
from simulator.faults.fake_learning import ELEMENTS, HELD_OUT, fake_bundle

_abandoned: deque[Store] = deque()
"""Of federations that are gone, to be closed here: SQLite wants the thread that opened them, and a
finaliser may run in any."""


def learn(device_id: str, model: Vector) -> Vector:
    """What a device "learns": its delta depends on its name and the model."""
    rng = np.random.default_rng(sum(device_id.encode()))
    return (rng.standard_normal(len(model)) * 0.01 - 0.1 * model).astype(np.float32)


class FakeRunner:
    """Does a task when the test says so (at once, unless `held`)."""

    runtimes: tuple[str, ...] = ("portable",)
    examples_count = 10
    steps_count = 0
    step_ms = 5
    """What a step takes this device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.held = False
        self.paused = False
        self.pending: tuple[Task, bytes] | None = None
        self.checked: list[str] = []

    def check(self, bundle: Bundle) -> None:
        """Remember what was asked."""
        self.checked.append(bundle.digest)

    def start(self, task: Task, bundle: Bundle, model: bytes) -> None:
        """Begin."""
        self.pending = (task, model)
        self.paused = False
        if not self.held:
            self._device.federation.later(self.finish)

    def pause(self, paused: bool) -> None:
        """Finish what was paused when it goes on, unless the test holds it."""
        self.paused = paused
        if not self.held and not paused:
            self._device.federation.later(self.finish)

    def drop(self) -> None:
        """Stop."""
        self.pending = None

    def finish(self) -> None:
        """The task is done."""
        if self.pending is None or self.paused or not self._device.alive:
            return
        (task, raw), self.pending = self.pending, None
        device = self._device
        steps = task.plan.steps_for(device.examples)
        if task.plan.training_ms_max is not None:
            steps = min(steps, -(-task.plan.training_ms_max // self.step_ms))
        blob = None
        if task.kind == "train":
            delta = learn(device.device_id, decode_vector(raw, "f32", ELEMENTS))
            blob = device.session.blobs.put(encode_vector(delta, task.encoding))
        update = Update(
            update_id=update_id(task, device.device_id),
            run_id=task.run_id,
            round_id=task.round_id,
            kind=task.kind,
            model=task.model.digest,
            examples=device.examples,
            blob=blob,
            encoding=task.encoding,
            steps=steps,
            training_ms=steps * self.step_ms,
            held_out=HELD_OUT,
        )
        device.session.task_event(TaskDone(update), device.federation.now_ms)


class Device:
    """A device: its folder survives, its session does not."""

    def __init__(self, federation: Federation, device_id: str, examples: int) -> None:
        self.federation = federation
        self.device_id = device_id
        self.examples = examples
        self.folder = federation.folder / device_id
        self.alive = False
        self.boot()

    def boot(self) -> None:
        """Start the client."""
        topics = self.federation.topics
        self.alive = True
        self.link = MemoryTransport(
            self.federation.broker, self._deliver, will_of(topics, self.device_id)
        )
        self.runner = FakeRunner(self)
        self.session = Session(self.device_id, topics, self.folder, self.link, self.runner)
        self.session.start(self.federation.now_ms)
        self.link.start()

    def kill(self) -> None:
        """Power off: memory is gone, the broker sends the will."""
        self.alive = False
        self.link.cut()

    def _deliver(self, event: LinkEvent) -> None:
        session = self.session if hasattr(self, "session") else None

        def handle() -> None:
            if self.alive and session is self.session:
                self.session.link_event(event, self.federation.now_ms)

        self.federation.later(handle)


M = TypeVar("M", bound=AnyMessage)


class Peer:
    """A device that says exactly what the test makes it say."""

    def __init__(self, federation: Federation, device_id: str) -> None:
        self.federation = federation
        self.device_id = device_id
        self.heard: list[AnyMessage] = []
        self.link = MemoryTransport(federation.broker, self._deliver)
        self.link.start()
        self.link.subscribe([federation.topics.down(device_id)])

    def _deliver(self, event: LinkEvent) -> None:
        if isinstance(event, Received):
            envelope = decode(event.payload)
            assert isinstance(envelope, Envelope), envelope
            self.heard.append(envelope.body)

    def say(self, *messages: AnyMessage) -> None:
        """Say this to the coordinator, and let it answer."""
        for message in messages:
            self.say_bytes(encode(message, "peer.1"))

    def say_bytes(self, payload: bytes) -> None:
        """Say anything at all."""
        self.federation.broker.route(
            self.federation.topics.up(self.device_id), payload, retain=False
        )
        self.federation.settle()

    def hello(self, installation: str = "") -> None:
        """Be online."""
        self.say(Hello("0", ("portable",), 10, ("f32",), installation=installation))

    def last(self, kind: type[M]) -> M:
        """The newest message of this kind that the coordinator sent."""
        return next(body for body in reversed(self.heard) if isinstance(body, kind))

    def update(self, content: bytes, **changes: object) -> Update:
        """The update that answers the newest task with this content."""
        task = self.last(Task)
        update = Update(
            update_id=update_id(task, self.device_id),
            run_id=task.run_id,
            round_id=task.round_id,
            kind=task.kind,
            model=task.model.digest,
            examples=10,
            blob=BlobRef(sha256_hex(content), len(content)),
            encoding=task.encoding,
            steps=1,
            training_ms=5,
        )
        return msgspec.structs.replace(update, **changes)

    def chunks(self, content: bytes) -> list[Chunk]:
        """`content` in chunks as large as they may be."""
        ref = BlobRef(sha256_hex(content), len(content))
        pieces = split([(0, blocks_count(len(content)))])
        parts = [
            (first, content[first * BLOCK_BYTES : (first + count) * BLOCK_BYTES])
            for first, count in pieces
        ]
        return [
            Chunk(ref.digest, ref.size_bytes, first, zlib.crc32(part), part)
            for first, part in parts
        ]


class Federation:
    """The whole, and the clock."""

    def __init__(
        self,
        folder: Path,
        *,
        local: int = 0,
        plan: dict[str, object] | None = None,
        **rounds: object,
    ) -> None:
        self.folder = folder
        self.now_ms = 1_000_000
        self.queue: deque[Callable[[], None]] = deque()
        self.broker = MemoryBroker()
        self.bundle = fake_bundle(local=local)
        self.devices: dict[str, Device] = {}
        self.jobs: list[AggregateJob] = []
        self.crash_before_aggregation = False
        self.config = msgspec.convert(
            {
                "federation": "test",
                "bundle": "unused",
                "state_dir": str(folder / "coordinator"),
                "rounds": {"count": 2, "cohort_size": 3, "collect_ms": 10_000, **rounds},
                "plan": plan or {},
                "hello_ms": 30_000,
            },
            CoordinatorConfig,
            dec_hook=lambda kind, value: kind(value),
        )
        self.topics = Topics("test")
        self.boots = 0
        self.boot_coordinator()

    def boot_coordinator(self) -> None:
        """Start the coordinator on its folder."""
        self.boots += 1
        while _abandoned:
            _abandoned.popleft().close()
        store = Store(self.folder / "coordinator")
        initial = np.linspace(-1, 1, ELEMENTS).astype(np.float32)
        ref = store.blobs.put(encode_vector(initial, "f32"))
        begin_run(store, self.bundle, "test", ref, self.now_ms)
        self.store = store
        weakref.finalize(self, _abandoned.append, store)
        self.coordinator_alive = True
        self.coordinator_link = MemoryTransport(self.broker, self._deliver)
        self.service = Service(
            self.config, self.bundle, store, self.coordinator_link, self._job, str(self.boots)
        )
        self.service.start(self.now_ms)
        self.coordinator_link.start()

    def kill_coordinator(self) -> None:
        """kill -9."""
        self.coordinator_alive = False
        self.coordinator_link.cut()
        self.store.close()

    def _deliver(self, event: LinkEvent) -> None:
        boot = self.boots

        def handle() -> None:
            if self.coordinator_alive and boot == self.boots:
                self.service.link_event(event, self.now_ms)

        self.later(handle)

    def _job(self, job: AggregateJob) -> None:
        self.jobs.append(job)
        if self.crash_before_aggregation:
            self.later(self.kill_coordinator)
            return
        result = run_aggregate_job(job, self.store.blobs, None)
        self.later(lambda: self.service.job_done(result, self.now_ms))

    def add(self, *names: str, examples: int = 10) -> None:
        """Add devices and switch them on."""
        for name in names:
            self.devices[name] = Device(self, name, examples)

    def later(self, action: Callable[[], None]) -> None:
        """Run an action after everything that is already queued."""
        self.queue.append(action)

    def settle(self, steps_max: int = 100_000) -> None:
        """Handle everything that is due now."""
        for _ in range(steps_max):
            if not self.queue:
                return
            self.queue.popleft()()
        raise AssertionError("the federation does not come to rest")

    def run(self, until: Callable[[], bool], limit_ms: int = 600_000) -> None:
        """Let time pass until a condition holds."""
        end_ms = self.now_ms + limit_ms
        self.settle()
        while not until():
            deadlines = [d.session.next_deadline_at_ms() for d in self.devices.values() if d.alive]
            if self.coordinator_alive:
                deadlines.append(self.service.next_deadline_at_ms())
            soonest = min((at_ms for at_ms in deadlines if at_ms is not None), default=None)
            if soonest is None or soonest > end_ms:
                raise AssertionError(f"not reached: {self.reason()}")
            self.now_ms = max(self.now_ms, soonest)
            if self.coordinator_alive:
                self.service.time_reached(self.now_ms)
            for device in self.devices.values():
                if device.alive:
                    device.session.time_reached(self.now_ms)
            self.settle()

    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.service.finished is not None

    def reason(self) -> str:
        """What the coordinator waits for."""
        state = self.store.load_state()
        return f"{state.phase}: {state.reason}"

    def model(self, version: int) -> Vector:
        """A stored global model."""
        model = self.store.model(version)
        assert model is not None, json.dumps([m.version for m in self.store.models()])
        return decode_vector(self.store.blobs.read(model.ref.digest), "f32", ELEMENTS)
