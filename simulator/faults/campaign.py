"""Many seeds, over all cores, with a sum at the end."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from simulator.faults.coverage import never_reached
from simulator.faults.world import Failure, Outcome, simulate

PROGRESS_S = 10.0
EXIT_CODES = {"crash": 11, "safety": 12, "liveness": 13}
"""Beside 0; of several the first in this order."""


class Summary(NamedTuple):
    """What a campaign found."""

    seeds: int
    failures: dict[int, Failure]
    counts: Counter[str]
    seconds: float

    def failed(self, kind: str) -> int:
        """How many seeds failed in this way."""
        return sum(failure.kind == kind for failure in self.failures.values())

    @property
    def exit_code(self) -> int:
        """0: every promise was kept."""
        return next((code for kind, code in EXIT_CODES.items() if self.failed(kind)), 0)

    def line(self) -> str:
        """All of it in a line."""
        each_ms = self.seconds * 1_000 / max(1, self.seeds)
        return (
            f"{self.seeds} seeds: {self.failed('crash')} crashes, {self.failed('safety')} safety "
            f"failures, {self.failed('liveness')} liveness failures, "
            f"{len(never_reached(self.counts))} never reached, {self.seconds:.0f} s "
            f"({each_ms:.0f} ms each)"
        )


def run_campaign(seeds: range, processes: int, *, quiet: bool = False) -> Summary:
    """Simulate these seeds; failures are printed as they come."""
    began_s, told_s = time.monotonic(), time.monotonic()
    counts: Counter[str] = Counter()
    failures: dict[int, Failure] = {}
    for number, outcome in enumerate(_outcomes(seeds, processes), 1):
        counts.update(outcome.counts)
        if outcome.failure is not None:
            failures[outcome.seed] = outcome.failure
            if not quiet:
                _tell(outcome.seed, outcome.failure)
        if not quiet and time.monotonic() - told_s > PROGRESS_S:
            told_s = time.monotonic()
            done_s = told_s - began_s
            print(
                f"{number} of {len(seeds)} seeds, {len(failures)} failed, {done_s:.0f} s",
                flush=True,
            )
    return Summary(len(seeds), failures, counts, time.monotonic() - began_s)


def _outcomes(seeds: Iterable[int], processes: int) -> Iterator[Outcome]:
    if processes == 1:
        yield from map(simulate, seeds)
        return
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=2_000) as pool:
        yield from pool.imap_unordered(simulate, seeds, chunksize=8)


def _tell(seed: int, failure: Failure) -> None:
    text = failure.text if failure.kind == "crash" else failure.text.split("\n", maxsplit=1)[0]
    print(f"seed {seed}: {failure.kind}: {text}", flush=True)
    print(f"    {sys.executable} -m simulator --seed {seed}", flush=True)
