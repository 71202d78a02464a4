"""Optimizers on flat vectors: numpy alone, in place, in blocks that fit into the cache.

The formulas are those of torch.optim (2.x), in float32 and in torch's order of operations:

    g <- sum of gradients / weight
    g <- g + mu (w - w_start)             FedProx, Li et al. 2020, eq. 2; shared parameters only
    g <- g min(1, c / (|g| + 1e-6))       torch.nn.utils.clip_grad_norm_, over all parameters
    SGD:   g <- g + decay w;  v <- momentum v + g;  w <- w - lr v
           (Nesterov: w <- w - lr (g + momentum v); Sutskever et al. 2013)
    AdamW: w <- w (1 - lr decay);  m <- m + (1 - b1) (g - m);  v <- b2 v + (1 - b2) g^2
           w <- w - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + epsilon)
           (Loshchilov & Hutter 2019, Algorithm 2)

The proximal term is part of the objective, so that its gradient is clipped with the rest; weight
decay is part of the optimizer, as in torch, and is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fedtide.plan import Plan
from fedtide.vectors import Vector

BLOCK = 32_768
"""Elements worked on at once: five blocks of 128 KiB stay in a core's second-level cache. On
x86-64, half as many take 1.1 to 1.5 times as long, twice as many the same."""
_CLIP_EPSILON = 1e-6


class OptimizerState(NamedTuple):
    """What an optimizer remembers: steps made, and its vectors, each float32[trained]."""

    steps: int
    vectors: tuple[Vector, ...]


def state_vectors_count(plan: Plan) -> int:
    """Vectors that the plan's optimizer remembers."""
    if plan.optimizer == "adamw":
        return 2
    return 1 if plan.momentum > 0 else 0


class Optimizer:
    """One round's optimizer; `step` allocates nothing."""

    def __init__(
        self,
        plan: Plan,
        size: int,
        *,
        anchor: Vector | None = None,
        state: OptimizerState | None = None,
    ) -> None:
        """For `size` trained values. `anchor` is the prefix of them that FedProx pulls back to.

        Raises:
            ValueError: `state` is another optimizer's, or of another model.
        """
        count = state_vectors_count(plan)
        if state is None:
            state = OptimizerState(0, tuple(np.zeros(size, np.float32) for _ in range(count)))
        elif [vector.shape for vector in state.vectors] != [(size,)] * count:
            raise ValueError(f"the state of {plan.optimizer} is {count} vectors of {size:,} values")
        else:
            state = OptimizerState(state.steps, tuple(vector.copy() for vector in state.vectors))
        self._plan = plan
        self._size = size
        self._anchor = anchor if plan.proximal_mu else None
        self._steps, self._vectors = state
        self._scratch = np.empty((2, min(BLOCK, size)), np.float32)

    @property
    def state(self) -> OptimizerState:
        """Live: the next step changes the vectors."""
        return OptimizerState(self._steps, self._vectors)

    def step(self, weights: Vector, gradient: Vector, weight: float) -> None:
        """Change `weights` by one step; `gradient`, of a sum of losses, is used up.

        `weight` is what the sum is to be divided by.
        """
        self._steps += 1
        blocks = self._blocks()
        clip_norm = self._plan.clip_norm
        if clip_norm is None:
            for block in blocks:
                self._finish_gradient(weights, gradient, block, weight)
                self._change(weights[block], gradient[block], block)
            return
        squares = 0.0
        for block in blocks:
            self._finish_gradient(weights, gradient, block, weight)
            squares += float(np.dot(gradient[block], gradient[block]))
        factor = min(1.0, clip_norm / (math.sqrt(squares) + _CLIP_EPSILON))
        for block in self._blocks():
            gradient[block] *= factor
            self._change(weights[block], gradient[block], block)

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, self._size, BLOCK):
            yield slice(start, min(start + BLOCK, self._size))

    def _finish_gradient(
        self, weights: Vector, gradient: Vector, block: slice, weight: float
    ) -> None:
        """Of the mean loss, with FedProx's term."""
        gradient[block] /= weight
        if self._anchor is None or block.start >= len(self._anchor):
            return
        block = slice(block.start, min(block.stop, len(self._anchor)))
        pull = self._scratch[0, : block.stop - block.start]
        np.subtract(weights[block], self._anchor[block], out=pull)
        pull *= self._plan.proximal_mu
        gradient[block] += pull

    def _change(self, weights: Vector, gradient: Vector, block: slice) -> None:
        if self._plan.optimizer == "adamw":
            self._adamw(weights, gradient, block)
        else:
            self._sgd(weights, gradient, block)

    def _sgd(self, weights: Vector, gradient: Vector, block: slice) -> None:
        plan = self._plan
        term = self._scratch[0, : len(weights)]
        if plan.weight_decay:
            np.multiply(weights, plan.weight_decay, out=term)
            gradient += term
        direction = gradient
        if plan.momentum:
            velocity = self._vectors[0][block]
            velocity *= plan.momentum
            velocity += gradient
            if plan.nesterov:
                np.multiply(velocity, plan.momentum, out=term)
                gradient += term
            else:
                direction = velocity
        np.multiply(direction, plan.learning_rate, out=term)
        weights -= term

    def _adamw(self, weights: Vector, gradient: Vector, block: slice) -> None:
        plan, (first, second) = self._plan, (vector[block] for vector in self._vectors)
        term, denominator = (scratch[: len(weights)] for scratch in self._scratch)
        beta1, beta2 = plan.betas
        if plan.weight_decay:
            weights *= 1 - plan.learning_rate * plan.weight_decay
        np.subtract(gradient, first, out=term)
        term *= 1 - beta1
        first += term
        np.multiply(gradient, 1 - beta2, out=term)
        term *= gradient
        second *= beta2
        second += term
        np.sqrt(second, out=denominator)
        denominator /= math.sqrt(1 - beta2**self._steps)
        denominator += plan.epsilon
        np.divide(first, denominator, out=term)
        term *= plan.learning_rate / (1 - beta1**self._steps)
        weights -= term
