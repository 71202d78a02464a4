"""What the figures of a policy mean, in a few sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.report.summary import PolicyFigures, Summary
from simulator.report.words import bytes_words, number_words, plural, share_words, time_words


def verdict(policy: PolicyFigures, summary: Summary) -> str:
    """How soon it got there, what it cost, who was left out. `summary` holds its rivals."""
    begin = "" if policy.complete else "Interrupted, so far: "
    if not policy.rounds_done:
        abandoned = policy.rounds_abandoned
        tried = f" {plural(abandoned, 'round')} abandoned." if abandoned else ""
        return f"{begin}No round was finished in {time_words(policy.virtual_ms)}.{tried}"
    target = summary.target_accuracy
    if target is None or policy.best_accuracy is None:  # a model may have losses alone
        main = _timed(policy, summary)
    else:
        main = _learned(policy, target, summary)
    return begin + " ".join(filter(None, (main, _waste(policy), _left_out(policy))))


def headline(summary: Summary) -> str:
    """Which policy is best at what; empty: there is nothing to compare."""
    policies = [policy for policy in summary.policies if policy.rounds_done]
    if len(policies) < 2:
        return ""
    if summary.target_accuracy is not None:
        goal = share_words(summary.target_accuracy)
        fast, lean = f"Fastest to {goal}", "fewest bytes"
        times = {p.name: p.target_reached.virtual_ms for p in policies if p.target_reached}
        sizes = {p.name: p.target_reached.bytes for p in policies if p.target_reached}
    else:
        fast, lean = "Most counted updates an hour", "fewest bytes an update"
        times = {p.name: -p.updates_per_hour for p in policies}
        sizes = {p.name: p.bytes / p.updates_counted for p in policies if p.updates_counted}
    waste = {p.name: p.work.wasted_share for p in policies if p.work.spent_ms}
    unfair = {p.name: p.participation.gini for p in policies if p.participation.gini is not None}
    parts = ((fast, times), (lean, sizes), ("least waste", waste), ("fairest", unfair))
    return "; ".join(f"{what}: {_least(values)}" for what, values in parts if values) + "."


def _least(values: Mapping[str, float]) -> str:
    """Whose value is the least, as far as the table shows a difference."""
    shown = {name: float(f"{value:.3g}") for name, value in values.items()}
    names = [name for name, value in shown.items() if value == min(shown.values())]
    return "all alike" if len(names) == len(values) > 1 else " and ".join(names)


def _learned(policy: PolicyFigures, target: float, summary: Summary) -> str:
    there = policy.target_reached
    if there is None:
        best = "" if policy.best_accuracy is None else share_words(policy.best_accuracy)
        return f"Did not reach {share_words(target)}; its best is {best}."
    cost = (
        f"{share_words(target)} after {time_words(there.virtual_ms)}, "
        f"{number_words(there.rounds)} rounds and {bytes_words(there.bytes)}"
    )
    rivals = {
        rival.name: rival.target_reached
        for rival in summary.policies
        if rival.target_reached is not None
    }
    if len(rivals) < 2:
        return f"{cost}."
    fastest = min(rivals, key=lambda name: rivals[name].virtual_ms)
    leanest = min(rivals, key=lambda name: rivals[name].bytes)
    time = _against(policy.name, fastest, there.virtual_ms, rivals[fastest].virtual_ms, "the time")
    size = _against(policy.name, leanest, there.bytes, rivals[leanest].bytes, "the bytes")
    first = "the fastest" if fastest == policy.name else time
    second = "the fewest bytes" if leanest == policy.name else size
    return f"{cost}: {first}, {second}."


def _against(name: str, best: str, value: float, least: float, what: str) -> str:
    if name == best:
        return ""
    return f"{value / least:.2f} times {what} of {best}" if least else f"more than {best}"


def _timed(policy: PolicyFigures, summary: Summary) -> str:
    rate = (
        f"{number_words(policy.rounds_per_hour)} rounds and "
        f"{number_words(policy.updates_per_hour)} counted updates an hour"
    )
    rivals = [rival for rival in summary.policies if rival.rounds_done]
    if len(rivals) < 2:
        return f"{rate}."
    best = max(rivals, key=lambda rival: rival.updates_per_hour)
    if best.name == policy.name:
        return f"{rate}: the most updates."
    share = policy.updates_per_hour / best.updates_per_hour if best.updates_per_hour else 0.0
    return f"{rate}: {share_words(share)} of the updates of {best.name}."


def _waste(policy: PolicyFigures) -> str:
    work = policy.work
    if not work.spent_ms:
        return ""
    if not work.wasted_share:
        return "No training was wasted."
    cause = max(work.wasted_ms, key=lambda name: work.wasted_ms[name])
    most = work.wasted_ms[cause] / work.spent_ms
    all_of_it = most == work.wasted_share
    rest = f"all of it {cause}" if all_of_it else f"most of it {cause} ({share_words(most)})"
    return f"{share_words(work.wasted_share)} of the training was wasted, {rest}."


def _left_out(policy: PolicyFigures) -> str:
    share = 1 - policy.participation.counted_share
    if share == 0:
        return "Every device was heard."
    text = f"{share_words(share)} of the devices were never heard"
    worst = min(policy.profiles, key=lambda name: policy.profiles[name].counted_share)
    least = policy.profiles[worst].counted_share
    if len(policy.profiles) < 2 or 1 - least <= share:
        return f"{text}."
    return f"{text} (worst: {worst}, {share_words(1 - least)})."
