"""What a device's optimizer steps amount to: the weights of FedNova.

Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", section 4: delta_k = -learning_rate * G_k a_k, with the gradient of each step in G_k,
and in the vector a_k how often the optimizer counts it by the end. Its L1 norm is what delta_k is
divided by, so that a device which made more steps does not count for more than its examples.
"""

from __future__ import annotations

from fedtide.plan import Plan


def objection(plan: Plan) -> str:
    """Why the norm is not known for devices with this plan; empty: it is."""
    if plan.optimizer != "sgd":
        return f"plan.optimizer is {plan.optimizer!r}, which weighs gradients by their own size"
    if plan.optimizer_state == "kept":
        return 'plan.optimizer_state is "kept": momentum of other rounds would count'
    if plan.momentum and plan.proximal_mu:
        return "plan.momentum and plan.proximal_mu are used together"
    if plan.learning_rate * plan.proximal_mu >= 1:
        return "plan.learning_rate times plan.proximal_mu is 1 or more: steps overshoot"
    return ""


def steps_norm(plan: Plan, steps: int) -> float:
    """|a_k|_1 > 0 for `steps` >= 1 steps of a plan without objection.

    Plain SGD: the number of steps. Momentum m: sum over k = 1..steps of (1 - m^k) / (1 - m); with
    Nesterov's, each gradient counts once more beside m times that. FedProx with c = learning rate
    times mu: sum over k = 0..steps-1 of (1 - c)^k. The same bits on every machine.
    """
    momentum = plan.momentum
    if not momentum:
        return _geometric_sum(max(1 - plan.learning_rate * plan.proximal_mu, 0.0), steps)
    norm = (steps - momentum * _geometric_sum(momentum, steps)) / (1 - momentum)
    return steps + momentum * norm if plan.nesterov else norm


def _geometric_sum(ratio: float, count: int) -> float:
    """1 + ratio + ... + ratio^(count - 1), by doubling: nothing cancels for a ratio near 1."""
    total, power = 0.0, 1.0
    for bit in f"{count:b}":
        total += power * total
        power *= power
        if bit == "1":
            total = 1 + ratio * total
            power *= ratio
    return total
