"""Which learning rate runs next."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.race import STEPS_MAX, Trial, next_step, verdict
from repro.rows import Search, grid_rate

TARGET = 0.97


class World:
    """Learning rates that need a known number of rounds; it runs what the race asks for."""

    def __init__(self, needed: dict[int, float], rounds_max: int = 1000) -> None:
        self.needed = {grid_rate(k): rounds for k, rounds in needed.items()}
        self.rounds_max = rounds_max
        self.trials: dict[float, Trial] = {}
        self.rounds_run = 0

    def run(self, search: Search, limit: float = math.inf) -> None:
        for _ in range(100):
            step = next_step(search, self.trials, limit)
            if step is None:
                return
            before = self.trials.get(step.learning_rate)
            self.trials[step.learning_rate] = after = self.trial(
                step.learning_rate, min(step.rounds_max, self.rounds_max)
            )
            assert after != before, "the race asks for what it has"
            self.rounds_run += after.last_round - (before.last_round if before else 0)
        pytest.fail("the race does not end")

    def trial(self, rate: float, cap: float) -> Trial:
        needed = self.needed.get(rate, math.inf)
        if math.isnan(needed):
            return Trial(2, None, True, True, ((0, 0.1), (1, 0.2)))
        reached = needed <= cap
        last = math.ceil(needed) if reached else int(cap)
        # The sooner a rate is there, the better it is on the way.
        speed = TARGET / (needed if needed < math.inf else 2 * self.rounds_max)
        curve = tuple((number, min(speed * number, 1.0)) for number in range(last + 1))
        ended = reached or last >= self.rounds_max
        return Trial(last, needed if reached else None, ended, False, curve)


@given(
    best=st.integers(-3, 3),
    probe=st.sampled_from([0, 5, 20]),
    slope=st.floats(1.1, 2),
    fewest=st.floats(1, 300),
)
def test_the_best_of_a_valley_is_found_and_lies_inside(
    best: int, probe: int, slope: float, fewest: float
) -> None:
    centre = 7
    world = World({k: fewest * slope ** abs(k - centre - best) for k in range(-10, 30)})
    search = Search(centre, probe)
    world.run(search)
    found = verdict(world.trials, search)
    assert found.learning_rate == grid_rate(centre + best)
    assert found.inside


def test_a_rate_is_given_up_once_it_cannot_win() -> None:
    world = World({5: 400.0, 6: 20.3, 7: 500.0})
    world.run(Search(6))
    assert {rate: trial.last_round for rate, trial in world.trials.items()} == {
        grid_rate(5): 21,  # it could still have crossed within the last round
        grid_rate(6): 21,
        grid_rate(7): 21,
    }


def test_probes_leave_two_to_run_to_the_end() -> None:
    world = World({4: 700.0, 5: 300.0, 6: 200.0, 7: 250.0, 8: 600.0})
    world.run(Search(6, 30))
    assert {k: world.trials[grid_rate(k)].last_round for k in (5, 6, 7)} == {5: 30, 6: 200, 7: 200}
    assert grid_rate(8) not in world.trials


def test_where_everything_diverges_lower_rates_are_tried() -> None:
    world = World(dict.fromkeys(range(4, 20), math.nan) | {3: 10.0, 2: 12.0, 1: 15.0})
    world.run(Search(6))
    assert verdict(world.trials).learning_rate == grid_rate(3)
    nothing = World(dict.fromkeys(range(-10, 20), math.nan))
    nothing.run(Search(6))
    assert verdict(nothing.trials).learning_rate is None
    assert min(nothing.trials) == grid_rate(6 - STEPS_MAX)


def test_an_optimum_at_the_edge_is_said_to_be_there() -> None:
    world = World({k: 100.0 / 1.3**k for k in range(30)})
    search = Search(6)
    world.run(search)
    found = verdict(world.trials, search)
    assert found.learning_rate == grid_rate(6 + STEPS_MAX)
    assert not found.inside


def test_a_target_that_nobody_reaches_ends() -> None:
    world = World({5: 4000.0, 6: 3000.0, 7: 5000.0})
    world.run(Search(6, 50))
    found = verdict(world.trials, Search(6, 50))
    assert (found.learning_rate, found.inside) == (grid_rate(6), True)


def test_a_limit_stops_all_and_the_search_goes_on_without_it() -> None:
    world = World({k: 50.0 * 1.2 ** abs(k - 7) for k in range(20)})
    search = Search(6)
    world.run(search, limit=10)
    assert {trial.last_round for trial in world.trials.values()} == {10}
    world.run(search)
    assert verdict(world.trials, search).learning_rate == grid_rate(7)


def test_what_was_run_already_is_not_run_again() -> None:
    search = Search(6, 20)
    world = World({k: 50.0 * 1.2 ** abs(k - 7) for k in range(20)})
    world.run(search)
    before = world.rounds_run
    world.run(search)
    assert world.rounds_run == before


def test_a_trial_that_was_interrupted_goes_on() -> None:
    world = World({5: 60.0, 6: 50.0, 7: 60.0})
    world.trials[grid_rate(6)] = world.trial(grid_rate(6), 3)
    world.run(Search(6))
    assert world.trials[grid_rate(6)].rounds == 50.0
