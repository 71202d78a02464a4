"""Run records to figures: pure, one pass for each record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor

import msgspec

from simulator.fleet.record import Record
from simulator.report.curves import crossing, rounds_to_target, running_best
from simulator.report.digest import Digest
from simulator.report.summary import HOUR_MS, Point, PolicyFigures, Reached, Summary
from simulator.report.tasks import may_count_late
from simulator.report.verdict import verdict

EVERY_DEVICE = "every device"


def summarise(
    records: Iterable[Record], profiles: Sequence[str] = (), target: float | None = None
) -> Summary:
    """The figures of a scenario's policies, one record each, in their order.

    `profiles`: a name for each device, by which they are grouped; default: one group.
    `target`: accuracy to reach, a fraction; default: that at which the scenario lets policies stop,
    or 99% of the least of the policies' best.

    Raises:
        ValueError: there is no record.
        StateError, DamagedError: as `Record.events`.
    """
    records = list(records)
    if not records:
        raise ValueError("no record to sum up")
    header = records[0].header
    names = profiles or [EVERY_DEVICE] * header.devices
    policies = [_policy(record, names) for record in records]
    asked = (
        header.scenario.get("learning", {}).get("stop_at_accuracy") if target is None else target
    )
    common = common_target(policies)
    chosen = common if common is None or asked is None else asked
    if chosen is not None:
        policies = [
            msgspec.structs.replace(policy, target_reached=reached(policy, chosen))
            for policy in policies
        ]
    summary = Summary(
        scenario=str(header.scenario.get("name", "scenario")),
        seed=header.seed,
        devices=header.devices,
        learning=header.learning,
        target_accuracy=chosen,
        target_given=chosen is not None and asked is not None,
        policies=tuple(policies),
        fedtide=header.fedtide,
    )
    judged = (
        msgspec.structs.replace(policy, verdict=verdict(policy, summary)) for policy in policies
    )
    return msgspec.structs.replace(summary, policies=tuple(judged))


def common_target(policies: Sequence[PolicyFigures]) -> float | None:
    """A little below what each policy reached, so that they can be compared; None: no accuracy."""
    best = [policy.best_accuracy for policy in policies if policy.best_accuracy is not None]
    return floor(min(best) * 0.99 * 1_000) / 1_000 if best else None


def best_so_far(curve: Sequence[Point]) -> list[tuple[Point, float]]:
    """The measured models, each with the best accuracy up to it."""
    points = [(point, point.accuracy) for point in curve if point.accuracy is not None]
    best = running_best([(point.version, accuracy) for point, accuracy in points])
    return [(point, value) for (point, _), (_, value) in zip(points, best, strict=True)]


def reached(policy: PolicyFigures, target: float) -> Reached | None:
    """When a policy's curve crosses the target; None: never."""
    points = [(point, point.accuracy) for point in policy.curve if point.accuracy is not None]
    rounds = rounds_to_target([(point.version, accuracy) for point, accuracy in points], target)
    since_ms = policy.since_first_round_ms
    virtual_ms = crossing([(since_ms(p.virtual_ms), accuracy) for p, accuracy in points], target)
    size = crossing([(point.bytes, accuracy) for point, accuracy in points], target)
    if rounds is None or virtual_ms is None or size is None:
        return None
    return Reached(rounds, virtual_ms, size)


def _policy(record: Record, names: Sequence[str]) -> PolicyFigures:
    header, totals = record.header, record.totals
    digest = Digest(header.devices, late_counts=may_count_late(header))
    for event in record.events():
        digest.observe(event)
    digest.end(totals.at_ms)
    finished = totals.finished
    succeeded = finished is not None and finished.succeeded
    virtual_ms = digest.last_model_ms() if succeeded else totals.at_ms
    first_round_ms = digest.rounds[0].opened_ms if digest.rounds else 0
    hours = (virtual_ms - first_round_ms) / HOUR_MS
    curve = digest.curve()
    accuracies = [point.accuracy for point in curve if point.accuracy is not None]
    counted = sum(digest.counted)
    return PolicyFigures(
        name=header.policy,
        complete=record.complete,
        succeeded=succeeded,
        reason="interrupted" if finished is None else finished.reason,
        rounds_asked=header.rounds,
        rounds_done=totals.rounds_done,
        rounds_abandoned=sum(entry.outcome == "abandoned" for entry in digest.rounds),
        virtual_ms=virtual_ms,
        first_round_ms=first_round_ms,
        tasks=sum(digest.fates.values()),
        updates_counted=counted,
        download_bytes=totals.spent.down_bytes,
        upload_bytes=totals.spent.up_bytes,
        rounds_per_hour=totals.rounds_done / hours if hours else 0.0,
        updates_per_hour=counted / hours if hours else 0.0,
        final_accuracy=accuracies[-1] if accuracies else None,
        best_accuracy=max(accuracies, default=None),
        final_loss=curve[-1].loss if curve else None,
        target_reached=None,
        work=digest.work(),
        participation=digest.participation(totals.invited),
        fates=dict(sorted(digest.fates.items())),
        profiles=digest.profiles(names),
        durations=digest.durations(),
        rounds=tuple(digest.rounds),
        curve=curve,
    )
