"""Workers on many machines, by Ray (extra `ray`).

A node needs fedtide with this extra and nothing else: the bundle and the compact data reach it
once, through Ray's object store. A task is a function of its arguments, so one whose worker or
node is lost is simply given to another. The same kind of processor gives the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from fedtide.errors import ConfigError, FedtideError, StateError
from fedtide.vectors import Vector
from simulator.learning.learner import Evaluate, Learned, Learner, Measured, Train
from simulator.learning.workers import Done, Evaluation, Task, split_batches


class _Worker:
    """What runs on a node: one learner, on one core."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def train(self, request: bytes, model: Vector) -> tuple[bytes, Vector]:
        """The delta, in an array of its own: what comes from the object store is read-only."""
        vector = model.copy()
        learned = self._learner.train(msgspec.msgpack.decode(request, type=Train), vector)
        return msgspec.msgpack.encode(learned), vector

    def evaluate(self, request: bytes, model: Vector) -> bytes:
        """Some batches of the test set."""
        work = msgspec.msgpack.decode(request, type=Evaluate)
        return msgspec.msgpack.encode(self._learner.evaluate(work, model))


class _Job:
    """One task, wherever it runs at the moment."""

    def __init__(self, work: Train | Evaluate, model: Any) -> None:
        self.work = work
        self.model = model
        """In the object store."""
        self.request = msgspec.msgpack.encode(work)
        self.result: Any = None
        self.worker = 0


class RayWorkers:
    """See `simulator.learning.workers.Workers`. One worker for each core of the cluster."""

    def __init__(self, learner: Learner, address: str, count: int | None = None) -> None:
        """Join the cluster at `address`; `count` workers, by default one for each core there.

        Raises:
            ConfigError: there is no cluster, or it has no free cores.
        """
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as exc:
            raise ConfigError(
                f"no Ray cluster answers at {address!r}: {exc}",
                hint="`ray start --head` on one machine, `ray start --address=...` on the others",
            ) from exc
        cores = int(ray.cluster_resources().get("CPU", 0))
        self.count = min(count or cores, cores)
        if self.count < 1:
            ray.shutdown()
            raise ConfigError(f"the Ray cluster at {address!r} has no cores to work with")
        self._learner = ray.put(learner.portable())
        actor = ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        self._workers = {number: actor.remote(self._learner) for number in range(self.count)}
        self._load = dict.fromkeys(self._workers, 0)
        self._stored: tuple[Vector | None, Any] = (None, None)

    def train(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """See `Workers`."""
        window: deque[_Job] = deque()
        for work, model in tasks:
            window.append(self._give(_Job(work, self._store(model))))
            if len(window) >= 2 * self.count:
                yield self._done(window.popleft())
        while window:
            yield self._done(window.popleft())

    def begin_evaluation(self, model: Vector, batches: int) -> Evaluation:
        """See `Workers`."""
        stored = self._store(model)
        works = split_batches(batches, self.count)
        return _Underway(self, [self._give(_Job(work, stored)) for work in works])

    def finish(self, jobs: Sequence[_Job]) -> Sequence[Measured]:
        """Wait for an evaluation."""
        return [msgspec.msgpack.decode(self._result(job), type=Measured) for job in jobs]

    def close(self) -> None:
        """See `Workers`."""
        ray.shutdown()

    def _store(self, model: Vector) -> Any:
        """Each model goes to the object store once."""
        known, stored = self._stored
        if known is not model:
            stored = ray.put(np.ascontiguousarray(model))
            self._stored = model, stored
        return stored

    def _give(self, job: _Job) -> _Job:
        job.worker = min(self._workers, key=self._load.__getitem__)
        self._load[job.worker] += 1
        worker = self._workers[job.worker]
        method = worker.train if isinstance(job.work, Train) else worker.evaluate
        job.result = method.remote(job.request, job.model)
        return job

    def _done(self, job: _Job) -> Done:
        raw, vector = self._result(job)
        return Done(msgspec.msgpack.decode(raw, type=Learned), vector)

    def _result(self, job: _Job) -> Any:
        """Wait for a task, and give it to another worker if its own is lost.

        Raises:
            FedtideError: what the learner raised.
            StateError: no worker is left.
        """
        while True:
            try:
                return ray.get(job.result)
            except RayTaskError as exc:
                cause = exc.cause
                if isinstance(cause, FedtideError):
                    raise cause from exc
                raise
            except RayActorError as exc:
                self._workers.pop(job.worker, None)
                if not self._workers:
                    raise StateError(
                        f"all {self.count} workers of the Ray cluster are lost; the last: {exc}",
                        hint="the same command goes on where it was",
                    ) from exc
            finally:
                self._load[job.worker] -= 1
            self._give(job)


class _Underway(NamedTuple):
    workers: RayWorkers
    jobs: Sequence[_Job]

    def result(self) -> Sequence[Measured]:
        return self.workers.finish(self.jobs)
