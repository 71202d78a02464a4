"""Workers on many machines, by Ray (extra `ray`).

A node needs fedtide with this extra and nothing else: the bundle and the compact data reach it
once, through Ray's object store. A task is a function of its arguments, so one whose worker or
node is lost is simply given to another. The same kind of processor gives the same bits.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnxruntime

import fedtide
from fedtide.errors import ConfigError, StateError, install_hint
from fedtide.vectors import Vector
from simulator.learning.answers import Answer, Reply, Work, name_of, perform, reply_of
from simulator.learning.learner import Evaluate, Learner, Measured, Train
from simulator.learning.workers import (
    SILENCE_TOLD_S,
    SILENCES_MAX,
    Done,
    Evaluation,
    Task,
    split_batches,
)

# How long Ray tries to reach a cluster, in seconds; it reads these when it is imported.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "10")
os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", "20")

try:
    import ray
    from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError
except ImportError as exc:
    raise ConfigError("Ray is not installed here", hint=install_hint("ray")) from exc

PROBE_S = 5.0
"""For a cluster's address to accept a connection."""
START_S = 60.0
"""For a worker to start."""
LATE_S = 15.0
"""For all others after the first: they may wait for cores that others have, or on a lost node that
is not known to be lost yet."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

log = logging.getLogger(__name__)


class _Worker:
    """What runs on a node: one learner, on one core."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def versions(self) -> str:
        """What decides the bits."""
        return _versions()

    def work(self, request: bytes, model: Vector) -> tuple[bytes, Vector | None]:
        """The answer and, after training, the delta."""
        work: Work = msgspec.msgpack.decode(request, type=Train | Evaluate)
        if isinstance(work, Evaluate):
            return msgspec.msgpack.encode(perform(self._learner, work, model)), None
        vector = model.copy()  # what comes from the object store is read-only
        return msgspec.msgpack.encode(perform(self._learner, work, vector)), vector


class _Job:
    """One task, wherever it runs at the moment."""

    def __init__(self, work: Work, model: Any) -> None:
        self.name = name_of(work)
        self.request = msgspec.msgpack.encode(work)
        self.model = model
        """In the object store."""
        self.result: Any = None
        self.worker = 0
        self.given_s = 0.0
        """On the monotonic clock."""


class RayWorkers:
    """See `simulator.learning.workers.Workers`. One worker for each free core of the cluster.

    While one is left, lost workers change nothing but the time.
    """

    def __init__(self, learner: Learner, address: str, count: int | None = None) -> None:
        """Join the cluster at `address`, HOST:PORT; `count` workers, by default all cores there.

        Raises:
            ConfigError: there is no cluster, it has no free cores, or a node has other versions.
        """
        _connect(address)
        try:
            self._start(learner, address, count)
        except BaseException:
            ray.shutdown()
            raise

    def _start(self, learner: Learner, address: str, count: int | None) -> None:
        cores = int(ray.cluster_resources().get("CPU", 0))
        self._learner = ray.put(learner.portable())
        actor = ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        workers = [actor.remote(self._learner) for _ in range(min(count or cores, cores))]
        versions = {worker.versions.remote(): worker for worker in workers}
        ready, late = ray.wait(list(versions), timeout=START_S)
        if ready and late:
            ready, _ = ray.wait(list(versions), num_returns=len(versions), timeout=LATE_S)
        started = [versions[reference] for reference in ready if _has_started(reference)]
        if not started:
            raise ConfigError(
                f"no worker started on the Ray cluster at {address!r}, which has {cores} cores in "
                f"all, within {START_S:.0f} s",
                hint="`ray status` says who uses them",
            )
        for worker in workers:
            if worker not in started:
                ray.kill(worker)
        self._workers = dict(enumerate(started))
        self._underway: list[_Job] = []
        self._stored: dict[int, tuple[weakref.ref[Vector], Any]] = {}
        self._lost = ""
        self.count = len(self._workers)

    def train(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """See `Workers`."""
        window: deque[_Job] = deque()
        try:
            for work, model in tasks:
                window.append(self._give(_Job(work, self._store(model))))
                if len(window) >= 2 * self.count:
                    yield Done(*self._result(window.popleft()))
            while window:
                yield Done(*self._result(window.popleft()))
        finally:  # also when nobody wants the rest
            for job in window:
                self._underway.remove(job)

    def begin_evaluation(self, model: Vector, batches: int) -> Evaluation:
        """See `Workers`."""
        stored = self._store(model)
        works = split_batches(batches, self.count)
        return _Underway(self, [self._give(_Job(work, stored)) for work in works])

    def finish(self, jobs: Sequence[_Job]) -> Sequence[Measured]:
        """Wait for an evaluation."""
        replies = [self._result(job)[0] for job in jobs]
        return [reply for reply in replies if isinstance(reply, Measured)]

    def close(self) -> None:
        """See `Workers`."""
        ray.shutdown()

    def _store(self, model: Vector) -> Any:
        """Each model goes to the object store once, and stays there while somebody has it here."""
        key = id(model)
        if key not in self._stored:
            gone = weakref.ref(model, lambda _: self._stored.pop(key, None))
            self._stored[key] = gone, ray.put(np.ascontiguousarray(model))
        return self._stored[key][1]

    def _give(self, job: _Job) -> _Job:
        if not self._workers:
            raise StateError(
                f"all {self.count} workers of the Ray cluster are lost; the last: {self._lost}",
                hint="the same command goes on where it was",
            )
        load = Counter(other.worker for other in self._underway)
        job.worker = min(self._workers, key=load.__getitem__)
        job.given_s = time.monotonic()
        self._underway.append(job)
        job.result = self._workers[job.worker].work.remote(job.request, job.model)
        return job

    def _result(self, job: _Job) -> tuple[Reply, Any]:
        """Wait for a task, and give it to another worker if its own is lost.

        Raises:
            FedtideError: what was raised there.
            StateError: no worker is left, none answers any more, or Ray failed.
        """
        while True:
            try:
                raw, vector = self._awaited(job)
            except RayActorError as exc:
                self._workers.pop(job.worker, None)
                self._lost = _last_line(exc)
            except ObjectLostError:  # the result was done, on a node that is gone
                pass
            except RayError as exc:
                raise StateError(f"Ray failed: {_last_line(exc)}") from exc
            else:
                return reply_of(msgspec.msgpack.decode(raw, type=Answer)), vector
            finally:
                self._underway.remove(job)
            self._give(job)

    def _awaited(self, job: _Job) -> Any:
        """What `_Worker.work` returned.

        Raises:
            RayError: the worker or its result is lost.
            StateError: no worker answers any more.
        """
        silences, left = 0, -1  # not known: others may have answered while this one was waited for
        while True:
            try:
                return ray.get(job.result, timeout=SILENCE_TOLD_S)
            except GetTimeoutError:
                unanswered = self._unanswered()
            silences = silences + 1 if len(unanswered) == left else 0
            left = len(unanswered)
            if silences:
                self._silent(silences, unanswered)

    def _unanswered(self) -> list[_Job]:
        """Those of which nothing was heard yet, in the order in which they were given."""
        results = [job.result for job in self._underway]
        _, waiting = ray.wait(results, num_returns=len(results), timeout=0, fetch_local=False)
        return [job for job in self._underway if job.result in waiting]

    def _silent(self, times: int, unanswered: list[_Job]) -> None:
        """Nobody has answered for so many `SILENCE_TOLD_S`.

        Raises:
            StateError: it is time to give up.
        """
        now_s = time.monotonic()
        firsts = {job.worker: job for job in reversed(unanswered)}
        busy = "; ".join(
            f"worker {worker} of {self.count} was given {job.name} {now_s - job.given_s:.0f} s ago"
            for worker, job in sorted(firsts.items())
        )
        log.warning("no worker has answered for %g s: %s", times * SILENCE_TOLD_S, busy)
        if times >= SILENCES_MAX:
            raise StateError(
                f"no worker has answered for {times * SILENCE_TOLD_S:g} s: {busy}",
                hint="`ray status` says which nodes are there; see whether a worker was stopped or "
                "waits for a disk; the same command goes on where it was",
            )


class _Underway(NamedTuple):
    workers: RayWorkers
    jobs: Sequence[_Job]

    def result(self) -> Sequence[Measured]:
        return self.workers.finish(self.jobs)


def _connect(address: str) -> None:
    """Join a cluster.

    Raises:
        ConfigError: there is none that takes us.
    """
    try:
        _probe(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, RayError) as exc:
        raise ConfigError(
            f"no Ray cluster answers at {address!r}: {_last_line(exc)}",
            hint="expected is HOST:PORT of its head, and this machine is to be one of its nodes: "
            "`ray start --head --port=6379` on one machine, `ray start --address=HOST:6379` on "
            "all others",
        ) from exc


def _probe(address: str) -> None:
    """Ray tries for long, where a refused connection says all.

    Raises:
        ValueError: not an address.
        OSError: nobody listens.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise ValueError("not HOST:PORT")
    if host in LOCAL_NAMES:  # as Ray does
        host = ray.util.get_node_ip_address()
    try:
        socket.create_connection((host, int(port)), PROBE_S).close()
    except OverflowError as exc:
        raise ValueError(str(exc)) from exc


def _versions() -> str:
    return (
        f"fedtide {fedtide.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"numpy {np.__version__}, {platform.machine()}"
    )


def _has_started(reference: Any) -> bool:
    """Whether a worker is there, and computes what this process would.

    Raises:
        ConfigError: it does not, or cannot.
    """
    try:
        there = ray.get(reference)
    except RayActorError as exc:
        if not exc.actor_init_failed:
            return False  # its node is lost
        raise ConfigError(
            f"a worker cannot start on the Ray cluster: {_last_line(exc)}",
            hint="every node needs fedtide, Ray and an ONNX Runtime: "
            f"{install_hint('client,ray')}, or '.[ray]' where fedtide's export is installed",
        ) from exc
    if there != _versions():
        raise ConfigError(
            f"a node of the Ray cluster has {there}; this machine has {_versions()}",
            hint="install the same on all: other versions may give other bits",
        )
    return True


def _last_line(exc: BaseException) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__
