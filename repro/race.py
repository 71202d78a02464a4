"""Which learning rate to run next, and how far: a pure function of what has been run.

The paper runs 11 to 13 rates, all to the end (section 3). Here the grid has the finer of its two
steps, 10^(1/6), but is climbed: from a rate in the middle to its neighbours, on towards whichever
is better, until both neighbours of the best one are worse. So the optimum lies inside of what was
tried, provided that there is one optimum only. A rate is given up once it has taken as many rounds
as the best one needed: its number, which would be larger, is never known.

Where runs are long they are first compared by their best accuracy after a few rounds; the two
best are then run to the end, the second as long as it can still win.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from repro.rows import GRID_STEPS, Search, grid_rate

FINALISTS = 2
STEPS_MAX = 6
"""From the centre, either way: the paper's grids have 11 to 13 values."""


class Trial(NamedTuple):
    """How far one learning rate got."""

    last_round: int
    rounds: float | None
    """To the target; None: not yet, or never."""
    ended: bool
    """There is nothing more to run: the target, the row's last round, or divergence."""
    diverged: bool
    curve: tuple[tuple[int, float], ...]
    """(round, accuracy) where it was measured."""

    def best(self, until: float = math.inf) -> float:
        """Best accuracy of the rounds up to `until`."""
        return max((value for number, value in self.curve if number <= until), default=0.0)


NOTHING = Trial(-1, None, False, False, ())


class Step(NamedTuple):
    """What to run next."""

    learning_rate: float
    rounds_max: float
    """Stop there, if the target is not reached before."""
    why: str


class Verdict(NamedTuple):
    """What the trials say."""

    learning_rate: float | None
    """The best; None: nothing was run, or everything diverged."""
    inside: bool
    """Both neighbours on the grid were tried and were worse."""


Trials = Mapping[float, Trial]
Score = tuple[float, float, float]
"""Lower is better."""


def next_step(search: Search, trials: Trials, limit: float = math.inf) -> Step | None:
    """The next thing to run; None: the search is done. No run goes beyond round `limit`."""
    if not search.probe:
        return _climb(search.centre, trials, limit, _by_rounds, "the whole run")
    until = min(search.probe, limit)

    def by_accuracy(trial: Trial) -> Score:
        rounds = math.inf if trial.rounds is None or trial.rounds > until else trial.rounds
        return (trial.diverged, rounds, -trial.best(until))

    step = _climb(search.centre, trials, until, by_accuracy, f"accuracy after {until:g} rounds")
    if step is not None:
        return step
    ranking = sorted(_grid(search.centre, trials), key=lambda k: (by_accuracy(_at(k, trials)), k))
    for k in ranking[:FINALISTS]:
        cap = min(_fewest(trials), limit)
        if not _settled(_at(k, trials), cap):
            return Step(grid_rate(k), cap, "one of the best so far")
    for k in _beside(verdict(trials, search).learning_rate):
        if abs(k - search.centre) <= STEPS_MAX and not _settled(_at(k, trials), until):
            return Step(grid_rate(k), until, "neighbour of the best")
    return None


def verdict(trials: Trials, search: Search | None = None) -> Verdict:
    """Which learning rate is the best; `search`: by what neighbours are compared."""
    running = {rate: trial for rate, trial in trials.items() if not trial.diverged}
    if not running:
        return Verdict(None, False)
    best = min(running, key=lambda rate: (_by_rounds(running[rate]), rate))
    needed = search.probe if search is not None and search.probe else _fewest(trials)
    beside = _beside(best)
    return Verdict(best, bool(beside) and all(_settled(_at(k, trials), needed) for k in beside))


def _beside(rate: float | None) -> list[int]:
    """The two neighbours of a rate of the grid."""
    if rate is None:
        return []
    k = round(GRID_STEPS * (math.log10(rate) + 2))
    return [k + 1, k - 1] if grid_rate(k) == rate else []


def _climb(
    centre: int, trials: Trials, limit: float, score: Callable[[Trial], Score], why: str
) -> Step | None:
    """Until both neighbours of the best are known to be worse."""
    if _at(centre, trials).last_round < 0:
        return Step(grid_rate(centre), limit, f"{why}, first rate")
    leader = min(_grid(centre, trials), key=lambda k: (score(_at(k, trials)), k))
    cap = min(_fewest(trials), limit) if score is _by_rounds else limit
    # A rate that diverged says nothing of higher ones, but that they are useless.
    beside = (leader - 1,) if _at(leader, trials).diverged else (leader + 1, leader - 1)
    for k in (leader, *beside):
        if abs(k - centre) <= STEPS_MAX and not _settled(_at(k, trials), cap):
            near = "" if k == leader else f", neighbour of {grid_rate(leader):g}"
            return Step(grid_rate(k), cap, f"{why}{near}")
    return None


def _grid(centre: int, trials: Trials) -> list[int]:
    """Those of the grid that were tried at all."""
    span = range(centre - STEPS_MAX, centre + STEPS_MAX + 1)
    return [k for k in span if _at(k, trials).last_round >= 0]


def _at(k: int, trials: Trials) -> Trial:
    return trials.get(grid_rate(k), NOTHING)


def _fewest(trials: Trials) -> float:
    """Rounds of the best, rounded up: within its last round another may still cross earlier."""
    reached = [trial.rounds for trial in trials.values() if trial.rounds is not None]
    return math.ceil(min(reached)) if reached else math.inf


def _settled(trial: Trial, cap: float) -> bool:
    return trial.ended or trial.last_round >= cap


def _by_rounds(trial: Trial) -> Score:
    reached = math.inf if trial.rounds is None else trial.rounds
    return (trial.diverged, reached, -trial.best())
