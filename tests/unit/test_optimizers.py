"""The optimizers against their formulas in float64, written without blocks or tricks.

What PyTorch computes is compared in `tests/contract/test_trainers.py`.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_client.optimizers import BLOCK, Optimizer, OptimizerState, state_vectors_count
from fedtide.plan import Plan

SIZE = 2 * BLOCK + 100
ANCHORED = BLOCK + 50
"""The prefix that travels ends inside a block."""
WEIGHT = 8.0
PLANS = [
    Plan(),
    Plan(momentum=0.9),
    Plan(momentum=0.9, nesterov=True, weight_decay=0.1),
    Plan(proximal_mu=0.5, clip_norm=0.5, weight_decay=0.1),
    Plan(optimizer="adamw"),
    Plan(optimizer="adamw", weight_decay=0.1, clip_norm=1e6, proximal_mu=0.3, epsilon=1e-3),
]


def formula(plan: Plan, w: Any, gradients: list[Any]) -> Any:
    """The docstring of `edge_client.optimizers`, word for word."""
    start, m, v = w.copy(), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient / WEIGHT
        g[:ANCHORED] += plan.proximal_mu * (w - start)[:ANCHORED]
        if plan.clip_norm is not None:
            g = g * min(1.0, plan.clip_norm / (np.linalg.norm(g) + 1e-6))
        if plan.optimizer == "adamw":
            b1, b2 = plan.betas
            w = w * (1 - plan.learning_rate * plan.weight_decay)
            m, v = m + (1 - b1) * (g - m), b2 * v + (1 - b2) * g**2
            root = np.sqrt(v) / np.sqrt(1 - b2**t) + plan.epsilon
            w = w - plan.learning_rate / (1 - b1**t) * m / root
        else:
            g = g + plan.weight_decay * w
            v = plan.momentum * v + g
            w = w - plan.learning_rate * (g + plan.momentum * v if plan.nesterov else v)
    return w


def made(seed: int) -> tuple[Any, list[Any]]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal(SIZE), [generator.standard_normal(SIZE) for _ in range(5)]


@pytest.mark.parametrize("plan", PLANS)
def test_steps_are_those_of_the_formula(plan: Plan) -> None:
    start, gradients = made(1)
    weights = start.astype(np.float32)
    optimizer = Optimizer(plan, SIZE, anchor=weights[:ANCHORED].copy())
    for gradient in gradients:
        optimizer.step(weights, gradient.astype(np.float32), WEIGHT)
    expected = formula(plan, start, gradients)
    assert np.abs(expected - start).max() > 1e-2
    np.testing.assert_allclose(weights, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_a_state_goes_on_to_the_same_bits(plan: Plan) -> None:
    start, gradients = made(2)
    weights = start.astype(np.float32)
    anchor = weights[:ANCHORED].copy()
    first = Optimizer(plan, SIZE, anchor=anchor)
    for gradient in gradients[:2]:
        first.step(weights, gradient.astype(np.float32), WEIGHT)
    again = weights.copy()
    second = Optimizer(plan, SIZE, anchor=anchor, state=first.state)
    for gradient in gradients[2:]:
        first.step(weights, gradient.astype(np.float32), WEIGHT)
        second.step(again, gradient.astype(np.float32), WEIGHT)
    np.testing.assert_array_equal(again, weights)
    assert first.state.steps == second.state.steps == 5


def test_another_optimizers_state_is_refused() -> None:
    state = Optimizer(Plan(momentum=0.5), 10).state
    assert len(state.vectors) == state_vectors_count(Plan(momentum=0.5)) == 1
    for plan, size in ((Plan(), 10), (Plan(optimizer="adamw"), 10), (Plan(momentum=0.5), 11)):
        with pytest.raises(ValueError, match="the state of"):
            Optimizer(plan, size, state=state)
    with pytest.raises(ValueError, match="the state of"):
        Optimizer(Plan(momentum=0.5), 10, state=OptimizerState(0, ()))


@pytest.mark.parametrize("plan", PLANS)
def test_a_step_allocates_nothing(plan: Plan) -> None:
    weights, gradient = np.ones(SIZE, np.float32), np.ones(SIZE, np.float32)
    optimizer = Optimizer(plan, SIZE, anchor=weights[:ANCHORED].copy())
    tracemalloc.start()
    try:
        optimizer.step(weights, gradient, WEIGHT)
        assert tracemalloc.get_traced_memory()[1] < 4 * BLOCK / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum and nesterov are of sgd"),
        ({"betas": [0.5, 0.9]}, "betas and epsilon are of adamw"),
        ({"epsilon": 1e-3}, "betas and epsilon are of adamw"),
        ({"nesterov": True}, "nesterov needs a momentum"),
        ({"optimizer_state": "kept"}, "sgd without momentum has no state"),
        ({"momentum": 1.0}, "momentum"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"proximal_mu": -1.0}, "proximal_mu"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"betas": [0.9]}, "betas"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(
    settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.convert(settings, Plan)


def test_a_plan_says_what_its_optimizer_needs() -> None:
    assert Plan().is_plain_sgd
    for plan in PLANS[1:]:
        assert not plan.is_plain_sgd
    assert not Plan(clip_norm=1.0).is_plain_sgd
    assert Plan(optimizer="adamw", optimizer_state="kept").has_state
