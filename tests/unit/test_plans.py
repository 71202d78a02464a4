"""The plan of a round: the configured one with the round's own seed and learning rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import RoundsConfig
from coordinator.plans import round_plan
from fedtide.plan import Plan


def test_a_round_changes_seed_and_learning_rate_and_nothing_else() -> None:
    rounds = RoundsConfig(seed=3, learning_rate_decay=0.5)
    plan = Plan(epochs=5, batch_size=20, learning_rate=0.125, seed=10, steps_max=7)
    made = round_plan(plan, rounds, round_id=4, model_version=2)
    assert made == Plan(epochs=5, batch_size=20, learning_rate=0.03125, seed=17, steps_max=7)


def test_seeds_stay_below_what_a_message_can_hold() -> None:
    made = round_plan(Plan(seed=2**53 - 1), RoundsConfig(seed=2**53 - 1), 5, 0)
    assert made.seed == 3


@given(st.floats(0.5, 1), st.integers(0, 500))
def test_the_learning_rate_decays_with_the_version(decay: float, version: int) -> None:
    rounds = RoundsConfig(learning_rate_decay=decay)
    made = round_plan(Plan(learning_rate=0.1), rounds, round_id=1, model_version=version)
    assert made.learning_rate == pytest.approx(0.1 * decay**version, rel=1e-12)


def test_without_decay_it_stays_bit_for_bit() -> None:
    made = round_plan(Plan(learning_rate=0.1), RoundsConfig(), round_id=9, model_version=12_345)
    assert made.learning_rate == 0.1
