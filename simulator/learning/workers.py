"""Who does the learning of a simulation: this process, or several that share its memory.

Whatever the number of workers the bits are the same: each task is a function of its arguments, and
results are taken in the order in which they were asked for.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple, NoReturn, Protocol

import msgspec
import numpy as np

from fedtide.errors import StateError
from fedtide.runtime import import_onnxruntime
from fedtide.vectors import Vector
from simulator.forking import end_with_starter, start
from simulator.learning.answers import Answer, Reply, Work, name_of, perform, reply_of
from simulator.learning.learner import Evaluate, Learner, Measured, Train

Where = int | str
"""A number of processes on this machine, or HOST:PORT of a Ray cluster."""
AHEAD_MOST, AHEAD_BYTES = 64, 128_000_000
"""Results that may wait for their turn: while a device with much data trains, others go on."""
PIECES = 4
"""Of an evaluation, for each worker: they fill the gaps that training leaves."""
END_S = 5.0
"""For a process to end, before it is killed."""
SILENCE_TOLD_S = 180.0
"""Without any worker's answer, before somebody is told, and between two times."""
SILENCES_MAX = 40
"""So often; two hours: a task that takes longer does not come to an end."""

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """Work on a model."""

    work: Work
    model: Vector
    """float32[shared_count]; only read."""


class Done(NamedTuple):
    """A result."""

    reply: Reply
    vector: Vector
    """After training the delta, float32[shared_count]: valid until the next result is taken."""


class Evaluation(Protocol):
    """One that is under way."""

    def result(self) -> Sequence[Measured]:
        """Wait for it; in the order of the test set."""


class Workers(Protocol):
    """See the module."""

    @property
    def count(self) -> int:
        """How many work at once."""

    def train(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Results in the order of the tasks; few vectors are in memory at a time.

        One at a time: close it, or take all of it, before the next.

        Raises:
            FedtideError: what the learner raised for the next task, or a worker is gone.
        """

    def begin_evaluation(self, model: Vector, batches: int) -> Evaluation:
        """Measure a model while other work goes on. `model` is copied."""

    def close(self) -> None:
        """Let go of processes and memory."""


def split_batches(batches: int, parts: int) -> list[Evaluate]:
    """Neighbouring batches for each of `parts` workers."""
    bounds = [batches * part // parts for part in range(parts + 1)]
    return [
        Evaluate(first, last - first) for first, last in itertools.pairwise(bounds) if last > first
    ]


class InProcess:
    """No other process: for small things, and to debug."""

    count = 1

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._vector: Vector = np.zeros(learner.shared_count, np.float32)

    def train(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """See `Workers`."""
        for work, model in tasks:
            assert isinstance(work, Train)
            self._vector[:] = model
            yield Done(self._learner.train(work, self._vector), self._vector)

    def begin_evaluation(self, model: Vector, batches: int) -> Evaluation:
        """See `Workers`; it is done at once."""
        measured = self._learner.evaluate(Evaluate(0, batches), model)
        return _Finished((measured,))

    def close(self) -> None:
        """See `Workers`."""


class _Finished(NamedTuple):
    measured: tuple[Measured, ...]

    def result(self) -> Sequence[Measured]:
        return self.measured


class _Job:
    """One task on its way through a worker."""

    def __init__(self, slot: int, work: Work, *, keeps_slot: bool) -> None:
        self.slot = slot
        self.work = work
        self.keeps_slot = keeps_slot
        self.begun_s = 0.0
        """On the monotonic clock, when a worker got it."""
        self.answer: Answer | None = None

    def reply(self) -> Reply:
        """See `reply_of`."""
        assert self.answer is not None
        return reply_of(self.answer)


class _Request(msgspec.Struct, frozen=True):
    slot: int
    work: Work


class Processes:
    """Forked processes, one a core: data are read once, and vectors travel in shared memory.

    A slot holds the model when a task begins and, after training, the delta. What a learner raises
    ends the task only; once a process is lost, nothing more can be asked for.
    """

    def __init__(self, learner: Learner, count: int) -> None:
        """Start `count` processes; nothing of onnxruntime may have been opened in this one.

        Raises:
            StateError: the system has no memory or no processes left.
        """
        import_onnxruntime()  # once for all: a fork shares what is imported
        self.count = count
        room = min(AHEAD_MOST, AHEAD_BYTES // (4 * learner.shared_count))
        self._window = max(2 * count, room)
        slots = self._window + PIECES * count
        # The last one let go is taken next: memory is touched only where it is needed.
        self._free = list(range(slots))
        self._waiting: deque[_Job] = deque()
        self._evaluating: deque[_Job] = deque()  # wait, too, until nobody waits to train
        self._busy: dict[int, _Job] = {}
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._broken: StateError | None = None
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        try:
            self._memory = mmap(-1, slots * 4 * learner.shared_count)
            self._vectors = np.frombuffer(self._memory, np.float32).reshape(slots, -1)
            for _ in range(count):
                self._start(learner)
        except OSError as exc:
            self.close()
            raise StateError(
                f"{count} processes with models of {learner.shared_count} values cannot be "
                f"started: {exc}",
                hint="try fewer workers",
            ) from exc

    def _start(self, learner: Learner) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        others = [*self._connections, ours]
        process = context.Process(
            target=_serve, args=(learner, self._vectors, theirs, others), daemon=True
        )
        try:
            start(process)
        finally:
            theirs.close()
            if process.pid is not None:  # also if we were interrupted: `close` ends it
                self._connections.append(ours)
                self._processes.append(process)

    def train(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """See `Workers`."""
        window: deque[_Job] = deque()
        try:
            for task in tasks:
                window.append(self._submit(task, keeps_slot=True))
                if len(window) == self._window:
                    yield self._done(window[0])
                    self._release(window.popleft())
            while window:
                yield self._done(window[0])
                self._release(window.popleft())
        finally:  # also when nobody wants the rest
            for job in window:
                self._release(job)

    def _done(self, job: _Job) -> Done:
        self._pump(lambda: job.answer is not None)
        return Done(job.reply(), self._vectors[job.slot])

    def _release(self, job: _Job) -> None:
        """Its vector is no longer needed."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._free.append(job.slot)
        elif job.answer is not None:
            self._free.append(job.slot)
        else:
            job.keeps_slot = False

    def begin_evaluation(self, model: Vector, batches: int) -> Evaluation:
        """See `Workers`."""
        works = split_batches(batches, PIECES * self.count)
        return _Underway(
            self, [self._submit(Task(work, model), keeps_slot=False) for work in works]
        )

    def finish(self, jobs: Sequence[_Job]) -> Sequence[Measured]:
        """Wait for an evaluation."""
        self._pump(lambda: all(job.answer is not None for job in jobs))
        return [reply for job in jobs if isinstance(reply := job.reply(), Measured)]

    def _submit(self, task: Task, *, keeps_slot: bool) -> _Job:
        self._pump(lambda: bool(self._free))
        slot = self._free.pop()
        self._vectors[slot] = task.model
        job = _Job(slot, task.work, keeps_slot=keeps_slot)
        (self._waiting if keeps_slot else self._evaluating).append(job)
        self._dispatch()
        return job

    def _dispatch(self) -> None:
        for worker, connection in enumerate(self._connections):
            waiting = self._waiting or self._evaluating
            if worker not in self._busy and waiting:
                job = self._busy[worker] = waiting.popleft()
                job.begun_s = time.monotonic()
                try:
                    connection.send_bytes(msgspec.msgpack.encode(_Request(job.slot, job.work)))
                except OSError:
                    self._gone(worker)

    def _pump(self, enough: Callable[[], bool]) -> None:
        """Hear answers and hand out work until it is enough.

        Raises:
            StateError: a worker is lost, or none answers any more.
            RuntimeError: it would never be: results of one `train` are waited for in another.
        """
        if self._broken is not None:
            raise self._broken
        silences = 0
        while not enough():
            if not self._busy:
                raise RuntimeError("all room is taken by results of a `train` that is not finished")
            # Waits are counted, not the clock's time: this process may have been stopped itself.
            ready = wait([self._connections[worker] for worker in self._busy], SILENCE_TOLD_S)
            silences = 0 if ready else silences + 1
            if silences:
                self._silent(silences)
            for worker in [w for w in self._busy if self._connections[w] in ready]:
                try:
                    answer = self._decoder.decode(self._connections[worker].recv_bytes())
                except (OSError, EOFError):
                    self._gone(worker)
                job = self._busy.pop(worker)
                job.answer = answer
                if not job.keeps_slot:
                    self._free.append(job.slot)
            self._dispatch()

    def _silent(self, times: int) -> None:
        """Nobody has answered for so many `SILENCE_TOLD_S`.

        Raises:
            StateError: it is time to give up.
        """
        now_s = time.monotonic()
        busy = "; ".join(
            f"worker {worker} of {self.count} (process {self._processes[worker].pid}) has been at "
            f"{name_of(job.work)} for {now_s - job.begun_s:.0f} s"
            for worker, job in sorted(self._busy.items())
        )
        log.warning("no worker has answered for %g s: %s", times * SILENCE_TOLD_S, busy)
        if times >= SILENCES_MAX:
            self._broken = StateError(
                f"no worker has answered for {times * SILENCE_TOLD_S:g} s: {busy}",
                hint="see whether it was stopped (SIGCONT lets it go on) or waits for a disk; "
                "the same command goes on where it was",
            )
            raise self._broken

    def _gone(self, worker: int) -> NoReturn:
        """Nobody is left at the other end.

        Raises:
            StateError: always.
        """
        process = self._processes[worker]
        process.join(END_S)
        code = process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        self._broken = StateError(
            f"worker {worker} of {self.count} (process {process.pid}) ended with {how}",
            hint="SIGKILL is often the system's answer to memory running out: try fewer workers; "
            "the same command goes on where it was",
        )
        raise self._broken

    def close(self) -> None:
        """See `Workers`; tasks under way are given up."""
        self._broken = self._broken or StateError("the workers were closed")
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()


class _Underway(NamedTuple):
    workers: Processes
    jobs: Sequence[_Job]

    def result(self) -> Sequence[Measured]:
        return self.workers.finish(self.jobs)


def _serve(
    learner: Learner, vectors: Vector, connection: Connection, others: list[Connection]
) -> None:
    """A worker's life: until its master closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the master says when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and may have its own handler
    for other in others:  # inherited: with them open a pipe would outlive its master
        other.close()
    end_with_starter(connection)
    decoder = msgspec.msgpack.Decoder(_Request)
    while True:
        try:
            request = decoder.decode(connection.recv_bytes())
            answer = perform(learner, request.work, vectors[request.slot])
            connection.send_bytes(msgspec.msgpack.encode(answer))
        except (OSError, EOFError):
            os._exit(0)


def open_workers(learner: Learner, where: Where) -> Workers:
    """Where there is no fork, or one process is enough: none beside this one.

    Raises:
        ConfigError: there is no such cluster, or Ray is not installed.
        StateError: the system has no memory or no processes left.
    """
    if isinstance(where, str):
        from simulator.learning.ray_workers import RayWorkers

        return RayWorkers(learner, where)
    if where <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        return InProcess(learner)
    return Processes(learner, where)
