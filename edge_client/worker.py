"""Does tasks in a thread of its own, so that training never starves the network.

onnxruntime releases Python's global lock while it computes. A thread, not a process: starting one
costs half a second and 30 MB on a small device (docs/adr/0005-training-thread.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from edge_client.config import ClientConfig
from edge_client.data import NotNowError
from edge_client.data.local_data import LocalData
from edge_client.data.usage import DataUse, now
from edge_client.local_state import LocalState, LocalStates
from edge_client.progress import SavedProgress
from edge_client.session_events import (
    EpochsSaved,
    Event,
    TaskDone,
    TaskFailed,
    TaskHeld,
)
from edge_client.trainers.opening import available_runtimes
from fedtide.blobs import BlobStore
from fedtide.bundle import Bundle
from fedtide.errors import (
    BundleError,
    ConfigError,
    DataError,
    FedtideError,
    GraphFailedError,
    StateError,
)
from fedtide.failpoints import reach
from fedtide.limits import METRIC_MAX
from fedtide.messages import BlobRef, Task, Update
from fedtide.vectors import Vector, decode_vector, encode_vector, whole_vector

if TYPE_CHECKING:
    from edge_client.trainers import Trainer
    from edge_client.training import TrainResult

_log = logging.getLogger(__name__)

LOSSES_MAX = 100
"""Newest epochs whose losses are told: an offer must fit into any broker's packet limit."""
ROOM_S, ROOM_S_MAX = 5.0, 300.0
"""First and longest pause before a full disk is tried again."""
IDLE_S = 30.0
"""Without a task for this long, the model and the data leave memory; opening takes a moment."""


DATA_REASON = "the local data do not fit the model; the device's own log says why"


class DivergedError(Exception):
    """Training led to values that are no model."""


class _Job(NamedTuple):
    task: Task
    bundle: Bundle
    model: bytes
    dropped: threading.Event


class Worker:
    """One training thread; results go to `report`, which only enqueues."""

    def __init__(
        self,
        config: ClientConfig,
        blobs: BlobStore,
        report: Callable[[Event | StateError], None],
    ) -> None:
        self.runtimes = usable_runtimes(config.training.runtime)
        self.steps_count = 0
        self._config = config
        self._blobs = blobs
        self._report = report
        self._local = LocalStates(config.state_dir)
        self._progress = SavedProgress(config.state_dir)
        self._jobs: SimpleQueue[_Job | Bundle | None] = SimpleQueue()
        self._dropped = threading.Event()
        self._gate = threading.Condition()
        self._paused = False
        self._opened: tuple[str, Trainer] | None = None
        self._data = LocalData(config.data)
        self._use = DataUse(config.data, config.state_dir)
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    @property
    def examples_count(self) -> int:
        """Examples to train on, as they were last read."""
        return self._data.examples_count

    def check(self, bundle: Bundle) -> None:
        """The log says whether the local data fit the model of this bundle."""
        self._jobs.put(bundle)

    def start(self, task: Task, bundle: Bundle, model: bytes) -> None:
        """Begin; a task that is being done is dropped."""
        self.drop()
        self._dropped = threading.Event()
        self.pause(False)
        self._jobs.put(_Job(task, bundle, model, self._dropped))

    def pause(self, paused: bool) -> None:
        """Do no more after the step or batch that is being computed, or go on with the next."""
        with self._gate:
            self._paused = paused
            self._gate.notify_all()

    def drop(self) -> None:
        """Stop what is being done."""
        with self._gate:
            self._dropped.set()
            self._gate.notify_all()

    def stop(self) -> None:
        """Stop for good."""
        self.drop()
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, Bundle):
                self._look_at_data(item)
            else:
                self._work(item)

    def _work(self, job: _Job) -> None:
        from edge_client.training import TrainingInterruptedError

        try:
            event: Event | StateError = TaskDone(self._do(job))
        except TrainingInterruptedError:
            event = self._failed(job, "stopped")
        except StateError as exc:
            event = exc
        except (FedtideError, DivergedError) as exc:
            _log.error("round %d: %s", job.task.round_id, one_line(exc))
            event = self._failed(job, public_reason(exc))
        except Exception as exc:  # noqa: BLE001 - the session must hear of every end
            _log.exception("round %d: unexpected failure", job.task.round_id)
            event = self._failed(job, public_reason(exc))
        if job.dropped.is_set() and not isinstance(event, StateError):
            _log.info("round %d: training was stopped", job.task.round_id)
        else:
            self._report(event)

    def _report_of(self, job: _Job, event: Event) -> None:
        """Of a task that is not over; nobody wants to know once it is dropped."""
        if not job.dropped.is_set():
            self._report(event)

    def _with_room(self, job: _Job, store: Callable[[], BlobRef]) -> BlobRef:
        """What was learned is not thrown away because the disk is full: wait, and try again.

        Raises:
            StateError: the disk is failing.
            TrainingInterruptedError: the task was dropped meanwhile.
        """
        from edge_client.training import TrainingInterruptedError

        task, pause_s = job.task, ROOM_S
        while True:
            try:
                return store()
            except StateError as exc:
                if not exc.no_room:
                    raise
                _log.warning("round %d: %s; trying again", task.round_id, exc.args[0])
            held = TaskHeld(
                task.run_id, task.round_id, "the disk is full: the update waits for room"
            )
            self._report_of(job, held)
            if job.dropped.wait(pause_s):
                raise TrainingInterruptedError("dropped while the disk was full")
            pause_s = min(2 * pause_s, ROOM_S_MAX)

    def _look_at_data(self, bundle: Bundle) -> None:
        """Whoever looks after this device shall not learn at the first task only."""
        try:
            count = len(self._data.current(bundle, self._dropped.wait).training.x)
        except FedtideError as exc:
            _log.error("tasks will be declined: %s", one_line(exc))
        except Exception:  # noqa: BLE001 - a task would say it again, as its reason
            _log.exception("tasks will be declined: the local data cannot be used")
        else:
            _log.info("the local data fit the model: %d examples to train on", count)

    def _failed(self, job: _Job, reason: str) -> TaskFailed:
        return TaskFailed(job.task.run_id, job.task.round_id, reason, logged=True)

    def _next(self) -> _Job | Bundle | None:
        """The next thing to do; a device that is idle for long gives its memory back meanwhile."""
        try:
            return self._jobs.get(timeout=IDLE_S)
        except Empty:
            if self._opened is not None:
                self._opened[1].close()
            self._opened = None
            self._data.forget()
            release_memory()
            return self._jobs.get()

    def _do(self, job: _Job) -> Update:
        from edge_client.local_round import Keeping, do_task

        task, manifest = job.task, job.bundle.manifest
        dataset = self._data.current(job.bundle, job.dropped.wait)
        if task.kind == "train":
            self._use.admit(task, now())
        if task.plan.optimizer not in manifest.optimizers:
            raise BundleError(f"the bundle does not offer the optimizer {task.plan.optimizer}")
        trainer = self._trainer(job.bundle)
        before = self._local.load(task, manifest)
        training = self._config.training
        keeping = Keeping(
            self._progress,
            training.lost_ms_max,
            (type(trainer).__name__, str(training.threads)),
            lambda epochs: self._report_of(job, EpochsSaved(task.run_id, task.round_id, epochs)),
        )
        start = _composed(job, before)
        learned, training_ms, held_out = do_task(
            task,
            trainer,
            dataset,
            start,
            before,
            keeping,
            self._pace(job.dropped),
            lambda: self._paused,
        )
        reach("client: training ended")
        blob = None
        if learned is not None:
            blob = self._with_room(job, lambda: self._blobs.put(self._encoded(learned, task)))
            reach("client: update written")
        return Update(
            update_id=update_id(task, self._config.device),
            run_id=task.run_id,
            round_id=task.round_id,
            kind=task.kind,
            model=task.model.digest,
            examples=len(dataset.training.x),
            blob=blob,
            encoding=task.encoding,
            steps=0 if learned is None else learned.steps,
            training_ms=training_ms,
            losses=() if learned is None else learned.losses[-LOSSES_MAX:],
            held_out=held_out,
        )

    def _trainer(self, bundle: Bundle) -> Trainer:
        """The trainer of this bundle, kept open between rounds."""
        if self._opened is not None and self._opened[0] == bundle.digest:
            return self._opened[1]
        from edge_client.trainers.opening import open_trainer

        if self._opened is not None:
            self._opened[1].close()
            self._opened = None
        training = self._config.training
        trainer = open_trainer(bundle, training.runtime, training.threads)
        self._opened = (bundle.digest, trainer)
        return trainer

    def _pace(self, dropped: threading.Event) -> Callable[[int, float], bool]:
        """After each step: rest, so that training takes its share of the time; False to stop."""
        rest_ratio = 1 / self._config.training.cpu_share - 1
        ended_s = time.monotonic()

        def on_step(_steps: int, _loss: float) -> bool:
            nonlocal ended_s
            self.steps_count += 1
            busy_s = time.monotonic() - ended_s
            with self._gate:
                self._gate.wait_for(lambda: dropped.is_set() or not self._paused)
            if rest_ratio > 0:
                dropped.wait(busy_s * rest_ratio)
            ended_s = time.monotonic()
            return not dropped.is_set()

        return on_step

    def _encoded(self, learned: TrainResult, task: Task) -> bytes:
        """The update's content; what stays on the device is on its disk before there is one."""
        if not all(abs(loss) <= METRIC_MAX for loss in learned.losses):
            raise DivergedError("training diverged: its loss is not finite")
        try:
            content = encode_vector(learned.delta, task.encoding)
            self._local.save(task, learned.local, learned.optimizer)
        except OverflowError as exc:
            raise DivergedError(f"training diverged: {exc}") from exc
        return content


def _composed(job: _Job, local: LocalState) -> Vector:
    """What travels, what this device keeps for itself, and the bundle's values for the rest."""
    manifest = job.bundle.manifest
    model = whole_vector(decode_vector(job.model, "f32", manifest.shared_count), job.bundle)
    if local.values is not None:
        model[manifest.local] = local.values
    return model


def public_reason(error: Exception) -> str:
    """What may leave the device of an error: nothing that quotes its data, paths or files."""
    if isinstance(error, DataError) and not isinstance(error, NotNowError):
        return DATA_REASON
    if isinstance(error, GraphFailedError):
        return "a graph of the bundle fails on the local data; the device's own log says why"
    from_disk = isinstance(error.__cause__, OSError)
    if isinstance(error, BundleError | DivergedError | NotNowError) and not from_disk:
        return one_line(error)
    return f"{type(error).__name__} on the device; its own log says more"


def one_line(error: Exception) -> str:
    """An error and its hint, for the log."""
    return "; ".join(str(error).split("\n\n"))


def release_memory() -> None:
    """Return freed memory to the system, where the C library can (glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def usable_runtimes(wanted: str) -> tuple[str, ...]:
    """What is installed here and allowed by `training.runtime`, best first.

    Raises:
        ConfigError: nothing.
    """
    available = available_runtimes()
    usable = available if wanted == "auto" else tuple(r for r in available if r == wanted)
    if not usable:
        raise ConfigError(
            f"training.runtime is {wanted!r}; installed here: {', '.join(available) or 'none'}",
            hint="pip install 'fedtide[client]' installs the portable runtime",
        )
    return usable


def update_id(task: Task, device_id: str) -> str:
    """The same task gives the same id, so that doing it twice can never count twice."""
    text = f"{task.run_id}/{task.round_id}/{device_id}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]
