"""The thread that aggregates: a job that hangs ends the process, and never keeps it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from coordinator.aggregate_job import Aggregated, AggregateJob, JobResult
from coordinator.job_thread import JobThread
from fedtide.errors import StateError
from fedtide.messages import BlobRef

REF = BlobRef("0" * 64, 4)
PATIENCE_S = 20.0


def job(round_id: int) -> AggregateJob:
    return AggregateJob(round_id, REF, (), 1)


class Bench:
    """A thread whose jobs end when they are let go; round 0 fails."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.said: SimpleQueue[JobResult | BaseException] = SimpleQueue()
        self.now_ms = 1_000
        self.thread = JobThread(self._run, self.said.put, lambda: self.now_ms, 5_000)

    def _run(self, work: AggregateJob) -> JobResult:
        self.go.wait(PATIENCE_S)
        if work.round_id == 0:
            raise FileNotFoundError("the base model")
        return Aggregated(work.round_id, work.base, None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.go.set()
    assert bench.thread.stop(PATIENCE_S)


def test_jobs_in_time_one_after_the_other(bench: Bench) -> None:
    bench.go.set()
    for round_id in (1, 2, 3):
        bench.thread.start(job(round_id))
        assert bench.said.get(timeout=PATIENCE_S) == Aggregated(round_id, REF, None)
        assert bench.thread.deadline_at_ms is None
    bench.thread.time_reached(10**9)


def test_what_a_job_raises_is_reported(bench: Bench) -> None:
    bench.go.set()
    bench.thread.start(job(0))
    assert isinstance(bench.said.get(timeout=PATIENCE_S), FileNotFoundError)
    assert bench.thread.deadline_at_ms is None


def test_a_hung_job_ends_the_process_in_words(bench: Bench) -> None:
    bench.thread.start(job(7))
    assert bench.thread.deadline_at_ms == 6_000
    bench.thread.time_reached(5_999)
    with pytest.raises(StateError, match=r"round 7 within 5 s") as raised:
        bench.thread.time_reached(6_000)
    assert "start again" in (raised.value.hint or "")


def test_no_job_queues_behind_a_hung_one(bench: Bench) -> None:
    bench.thread.start(job(7))
    with pytest.raises(StateError, match="round 7"):
        bench.thread.start(job(8))


def test_the_end_does_not_wait_for_a_hung_job(bench: Bench) -> None:
    assert bench.thread.stop(0.01)
    bench.thread.start(job(7))
    assert not bench.thread.stop(0.01)


def test_the_interpreter_does_not_wait_for_a_hung_job_either() -> None:
    script = (
        "import threading\n"
        "from coordinator.job_thread import JobThread\n"
        "from tests.unit.test_job_thread import job\n"
        "hangs = JobThread(lambda _: threading.Event().wait(), print, lambda: 0, 1)\n"
        "hangs.start(job(1))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
