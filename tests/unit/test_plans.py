"""The plan of a round: the configured one with the round's own seed and learning rate."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import CoordinatorConfig, RoundsConfig
from coordinator.plans import check_against, round_plan
from fedtide.errors import ConfigError
from fedtide.manifest import Tensor
from fedtide.plan import Plan
from simulator.faults.fake_learning import fake_bundle


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


def test_what_a_bundle_cannot_be_trained_with_is_said() -> None:
    rounds = RoundsConfig(cohort_size=1, weights="fednova")
    config = CoordinatorConfig("f", Path("bundle"), Path("state"), rounds=rounds)
    manifest = fake_bundle().manifest
    check_against(config, manifest)
    mean = Tensor("norm.running_mean", (4,), 0, "statistic", shared=True)
    normed = msgspec.structs.replace(manifest, tensors=(mean, *manifest.tensors))
    with pytest.raises(ConfigError, match=r"norm\.running_mean"):
        check_against(config, normed)
    check_against(msgspec.structs.replace(config, rounds=RoundsConfig(cohort_size=1)), normed)
    with pytest.raises(ConfigError, match="'sgd'"):
        check_against(config, msgspec.structs.replace(manifest, optimizers=("adamw",)))
