"""Seeds of the simulation with faults; the same seed gives the same transcript everywhere."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from simulator.faults.campaign import run_campaign
from simulator.faults.world import simulate


@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 1_000), marks=pytest.mark.slow)], ids=len
)
def test_many_seeds_keep_every_promise(seeds: range, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_campaign(seeds, os.cpu_count() or 1)
    with capsys.disabled():
        print(f"\n{summary.line()}")
    assert summary.failures == {}


@pytest.mark.parametrize("seed", [3, 4])
def test_a_seed_gives_the_same_transcript_twice(seed: int) -> None:
    assert simulate(seed) == simulate(seed)
    assert logging.root.manager.disable == logging.NOTSET, "the process is left as it was"


UNSORTED = """
from coordinator import round_machine
sorted_cohort = round_machine.select_cohort
round_machine.select_cohort = lambda *words: tuple(set(sorted_cohort(*words)))
"""


@pytest.mark.parametrize("planted", ["", UNSORTED], ids=["as it is", "unsorted cohort"])
def test_a_seed_gives_the_same_transcript_under_another_hash_seed(planted: str) -> None:
    code = f"{planted}\nfrom simulator.faults.world import simulate\n"
    code += "print(*(simulate(seed).digest for seed in range(20, 30)))"

    def digests(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=300
        ).stdout

    first, second = digests("1"), digests("2")
    assert first
    assert (first == second) == (not planted)
