"""FedNova: what steps amount to, by the optimizer itself, and what follows for the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.aggregation import Contribution, fednova_scales, weight_of, weighted_mean
from coordinator.local_steps import objection, steps_norm
from edge_client.optimizers import Optimizer
from fedtide.plan import Plan
from fedtide.vectors import Vector

RATE = 2.0**-10
plans = (
    st.builds(Plan, learning_rate=st.just(RATE), proximal_mu=st.sampled_from([0, 1.0, 100.0]))
    | st.builds(Plan, learning_rate=st.just(RATE), momentum=st.floats(0.01, 0.99))
    | st.builds(
        Plan, learning_rate=st.just(RATE), momentum=st.floats(0.01, 0.99), nesterov=st.just(True)
    )
)


@given(plans, st.integers(1, 60))
def test_it_is_how_far_the_optimizer_goes_with_a_gradient_of_one(plan: Plan, steps: int) -> None:
    weights = np.zeros(1, np.float32)
    optimizer = Optimizer(plan, 1, anchor=np.zeros(1, np.float32))
    for _ in range(steps):
        optimizer.step(weights, np.ones(1, np.float32), 1.0)
    assert steps_norm(plan, steps) == pytest.approx(-float(weights[0]) / RATE, rel=1e-4)


@given(st.integers(1, 2**52))
def test_plain_steps_are_counted_exactly(steps: int) -> None:
    assert steps_norm(Plan(), steps) == steps


@given(plans, st.integers(1, 10**9))
def test_it_is_finite_and_no_less_than_one_step(plan: Plan, steps: int) -> None:
    assert 1 - 1e-9 <= steps_norm(plan, steps) < math.inf
    assert not objection(plan)


@pytest.mark.parametrize("momentum", [1e-9, 1 - 1e-9])
def test_it_is_exact_at_the_ends(momentum: float) -> None:
    plan = Plan(momentum=momentum)
    expected = math.fsum(math.fsum(momentum**i for i in range(k)) for k in range(1, 31))
    assert steps_norm(plan, 30) == pytest.approx(expected, rel=1e-6)


deltas = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3).map(
    lambda values: np.array(values, np.float32)
)
parts = st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 9), deltas), min_size=1)


def mean_of(
    chosen: list[tuple[int, int, Vector]], steps_norms: list[float], factor: float | None = None
) -> Vector:
    weights = [weight_of(n, staleness) for n, staleness, _ in chosen]
    norms = [float(np.linalg.norm(delta)) for *_, delta in chosen]
    scales = fednova_scales(weights, steps_norms, norms, factor)
    return weighted_mean(
        (
            Contribution(n, delta, s, scale)
            for (n, s, delta), scale in zip(chosen, scales, strict=True)
        ),
        3,
    )


@given(parts, st.integers(1, 10**6))
def test_with_equal_steps_it_is_the_weighted_mean(
    chosen: list[tuple[int, int, Vector]], steps: int
) -> None:
    plain = weighted_mean((Contribution(n, delta, s) for n, s, delta in chosen), 3)
    mean = mean_of(chosen, [float(steps)] * len(chosen))
    np.testing.assert_allclose(mean, plain, rtol=1e-6, atol=1e-9)


@given(parts, st.data())
def test_it_is_the_formula_of_the_paper(
    chosen: list[tuple[int, int, Vector]], data: st.DataObject
) -> None:
    """delta = tau sum_k p_k delta_k / a_k, tau = sum_k p_k a_k, in the paper's own order."""
    size = len(chosen)
    steps = data.draw(st.lists(st.integers(1, 1000), min_size=size, max_size=size))
    weights = [n / math.sqrt(1 + s) for n, s, _ in chosen]
    shares = [w / math.fsum(weights) for w in weights]
    tau = math.fsum(p * a for p, a in zip(shares, steps, strict=True))
    expected = tau * sum(
        p * delta.astype(np.float64) / a
        for p, a, (_, _, delta) in zip(shares, steps, chosen, strict=True)
    )
    np.testing.assert_allclose(
        mean_of(chosen, [float(a) for a in steps]), expected, rtol=1e-5, atol=1e-3
    )


def rounds(weights: str) -> float:
    """Where a federation of two ends: minima at 0 and 1, equal examples; 20 steps against one."""
    model, rate = np.zeros(3, np.float32), np.float32(0.002)
    for _ in range(3_000):
        chosen = []
        for minimum, steps in ((0.0, 20), (1.0, 1)):
            local = model.copy()
            for _ in range(steps):
                local -= rate * (local - np.float32(minimum))
            chosen.append((100, 0, local - model))
        equal = [1.0, 1.0]
        model = model + mean_of(chosen, [20.0, 1.0] if weights == "fednova" else equal)
    return float(model[0])


def test_who_makes_more_steps_does_not_draw_the_model_to_itself() -> None:
    """The minimum of the mean objective is 0.5 (Wang et al. 2020, section 3, the same example)."""
    assert rounds("examples") < 0.06
    assert rounds("fednova") == pytest.approx(0.5, abs=0.01)


def test_a_claim_of_one_step_is_bounded_like_a_norm() -> None:
    """What was made of 100 steps, said to be of one, counts with the factor, not with 100."""
    honest = fednova_scales([1.0] * 4, [100.0] * 4, [1.0] * 4, 10)
    liar = fednova_scales([1.0] * 4, [100.0, 100.0, 100.0, 1.0], [1.0] * 4, 10)
    assert honest == [1.0] * 4
    assert liar[3] / liar[0] == pytest.approx(10)
    unbounded = fednova_scales([1.0] * 4, [100.0, 100.0, 100.0, 1.0], [1.0] * 4, 0)
    assert unbounded[3] / unbounded[0] == pytest.approx(100)


def test_a_claim_of_many_steps_and_examples_does_not_blow_up_the_others() -> None:
    weights, steps, norms = [600.0] * 9 + [1e6], [60.0] * 9 + [1e5], [1.0] * 10
    assert fednova_scales(weights, steps, norms, 0)[0] > 1_000
    assert fednova_scales(weights, steps, norms, 10)[0] <= 10
