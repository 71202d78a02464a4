"""What a client is asked to do: `ClientUpdate(k, w)` of McMahan et al. 2016, Algorithm 1.

The optimizers are those of torch.optim, with its names; FedProx is Li et al. 2020, Algorithm 2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Beta = Annotated[float, Meta(ge=0, lt=1)]
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class Plan(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Local training of one round. FedSGD is `epochs=1, batch_size="all"`.

    Written without what is as by default, so that a peer which does not know a newer field still
    understands the plans that do without it.

    Raises:
        ValueError: settings that contradict each other.
    """

    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """E, local passes over the data."""
    batch_size: Annotated[int, Meta(ge=1, le=1_000_000)] | Literal["all"] = 10
    """B, examples in a local minibatch, or the whole local set as one batch (B = infinity)."""
    examples_at_once: Annotated[int, Meta(ge=1, le=1_000_000)] = 128
    """A larger batch is computed in parts whose gradients add up, where the model allows it."""
    learning_rate: Annotated[float, Meta(gt=0, le=1_000)] = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Beta = 0.0
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's momentum, of SGD."""
    betas: tuple[Beta, Beta] = _BETAS
    """Of AdamW: decay of the averages of gradient and squared gradient."""
    epsilon: Annotated[float, Meta(gt=0, le=1)] = _EPSILON
    """Of AdamW."""
    weight_decay: Annotated[float, Meta(ge=0, le=1_000)] = 0.0
    """SGD: L2 penalty; AdamW: decoupled decay."""
    proximal_mu: Annotated[float, Meta(ge=0, le=1_000)] = 0.0
    """FedProx: pull towards the model that the round started from; 0: none."""
    clip_norm: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Largest L2 norm of the gradient of a step over all trained parameters."""
    optimizer_state: Literal["fresh", "kept"] = "fresh"
    """Whether momentum and averages begin anew with each round, or stay on the device."""
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    """Seeds the order of the examples, and dropout."""
    steps_max: Annotated[int, Meta(ge=1, lt=2**53)] | None = None
    """At most this many optimizer steps in all, whatever the epochs."""
    training_ms_max: Annotated[int, Meta(ge=1, lt=2**53)] | None = None
    """Training ends after the step in which the work on the task has taken this long, by the
    device's monotonic clock; earlier lives of the client count, at least one step is made. What
    comes of it depends on the number of steps, and on nothing else of the time."""

    def __post_init__(self) -> None:
        """Settings of one optimizer mean nothing to the other."""
        if self.optimizer == "adamw" and (self.momentum or self.nesterov):
            raise ValueError("momentum and nesterov are of sgd; adamw has betas")
        if self.optimizer == "sgd" and (self.betas, self.epsilon) != (_BETAS, _EPSILON):
            raise ValueError("betas and epsilon are of adamw, the optimizer is sgd")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.optimizer_state == "kept" and not self.has_state:
            raise ValueError('optimizer_state is "kept", but sgd without momentum has no state')

    def steps_for(self, examples: int) -> int:
        """Optimizer steps for this many local examples, unless time ends training before."""
        batches = 1 if self.batch_size == "all" else -(-examples // self.batch_size)
        steps = self.epochs * batches
        return steps if self.steps_max is None else min(steps, self.steps_max)

    @property
    def has_state(self) -> bool:
        """Whether the optimizer remembers anything from step to step."""
        return self.optimizer == "adamw" or self.momentum > 0

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is w <- w - learning_rate * gradient, and nothing else."""
        extras = self.has_state or self.weight_decay or self.proximal_mu
        return not extras and self.clip_norm is None
