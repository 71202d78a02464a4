"""The thread that aggregates: one job at a time, and nobody waits for a hung one without end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from coordinator.aggregate_job import AggregateJob, JobResult
from fedtide.errors import StateError

STOP_S = 10.0
"""The end of the process waits no longer for a job: the next start does it again."""


class JobThread:
    """`report` is called in the thread: with the result of a job, or with what it raised."""

    def __init__(
        self,
        run: Callable[[AggregateJob], JobResult],
        report: Callable[[JobResult | BaseException], None],
        now_ms: Callable[[], int],
        longest_ms: int,
    ) -> None:
        self._run = run
        self._report = report
        self._now_ms = now_ms
        self._longest_ms = longest_ms
        self._thread: threading.Thread | None = None
        self._at_work: tuple[int, int] | None = None
        """Round and deadline of the job that has not come to its end."""
        self.last_ms: int | None = None
        """What the last job took that ended."""

    @property
    def deadline_at_ms(self) -> int | None:
        """When to call `time_reached`."""
        at_work = self._at_work
        return None if at_work is None else at_work[1]

    def start(self, job: AggregateJob) -> None:
        """Begin a job.

        Raises:
            StateError: the one before hangs.
        """
        self._must_be_free()
        self._at_work = (job.round_id, self._now_ms() + self._longest_ms)
        # A daemon: the interpreter waits for every other kind of thread at its end.
        self._thread = threading.Thread(
            target=self._work, args=(job,), name=f"aggregation-{job.round_id}", daemon=True
        )
        self._thread.start()

    def _work(self, job: AggregateJob) -> None:
        said: JobResult | BaseException
        began_at_ms = self._now_ms()
        try:
            said = self._run(job)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the other thread raises it
            said = exc
        self.last_ms = self._now_ms() - began_at_ms
        self._at_work = None
        self._report(said)

    def time_reached(self, at_ms: int) -> None:
        """Call it after the round machine has seen the same time, and abandoned the round.

        Raises:
            StateError: the job hangs. No other can be done beside it, and no thread can be ended.
        """
        deadline_at_ms = self.deadline_at_ms
        if deadline_at_ms is not None and at_ms >= deadline_at_ms:
            self._must_be_free()

    def _must_be_free(self) -> None:
        at_work = self._at_work
        if at_work is not None:
            raise StateError(
                f"no model came out of round {at_work[0]} within {self._longest_ms / 1000:g} s, "
                "and the work on it goes on",
                hint="that round is abandoned; start again, and the next one opens; if this comes "
                "again, look after the disk of state_dir or raise rounds.aggregate_ms",
            )

    def stop(self, longest_s: float = STOP_S) -> bool:
        """Wait for the job at work, but not for ever; whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(longest_s)
        return not self._thread.is_alive()
