"""What a round asks of its devices: the configured plan, made the round's own."""

from __future__ import annotations

import msgspec

from coordinator.config import CoordinatorConfig, RoundsConfig
from fedtide.errors import ConfigError
from fedtide.manifest import Manifest
from fedtide.plan import Plan


def round_plan(plan: Plan, rounds: RoundsConfig, round_id: int, model_version: int) -> Plan:
    """The plan of round `round_id`, whose devices start from model `model_version`.

    Each round shuffles the examples anew, from the configured seeds. The learning rate decays with
    each version of the model (McMahan et al. 2016, section 3, CIFAR-10: 0.99 for FedAvg).
    """
    seed = (plan.seed + rounds.seed + round_id) % 2**53
    decayed = plan.learning_rate * _power(rounds.learning_rate_decay, model_version)
    return msgspec.structs.replace(plan, seed=seed, learning_rate=decayed)


def check_against(config: CoordinatorConfig, manifest: Manifest) -> None:
    """Whether devices can train this model as configured, and their updates be averaged so.

    Raises:
        ConfigError: they cannot.
    """
    offered = manifest.optimizers
    if config.plan.optimizer not in offered:
        raise ConfigError(
            f"plan.optimizer is {config.plan.optimizer!r}, which the bundle does not offer",
            hint=f"one of {', '.join(offered)}",
        )
    shared = [t.name for t in manifest.tensors if t.kind == "statistic" and t.shared]
    if shared and config.rounds.weights == "fednova":
        raise ConfigError(
            f'rounds.weights is "fednova", but the bundle shares statistics ({shared[0]}), which '
            "are no sums over steps",
            hint='use weights = "examples", or export the model with `local` statistics',
        )


def _power(base: float, exponent: int) -> float:
    """By squaring: products are the same bits on every machine, those of `pow` need not be."""
    power = 1.0
    while exponent:
        if exponent & 1:
            power *= base
        base *= base
        exponent >>= 1
    return power
