"""The heavy part of a round, away from the network: reduce, write the model, evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from coordinator.aggregation import (
    Contribution,
    apply_delta,
    clip_scales,
    fednova_scales,
    weight_of,
    weighted_mean,
)
from coordinator.config import Weights
from coordinator.local_steps import steps_norm
from fedtide.blobs import BlobStore
from fedtide.failpoints import reach
from fedtide.measures import Metrics
from fedtide.messages import BlobRef, Update
from fedtide.plan import Plan
from fedtide.vectors import Vector, decode_vector, encode_vector

Evaluate = Callable[[Vector], Metrics]


class Part(NamedTuple):
    """One update of a job."""

    update: Update
    staleness: int = 0
    norm: float | None = None
    """L2 norm of its delta; None in stores of earlier versions."""
    plan: Plan = Plan()
    """By which it was trained."""


class AggregateJob(NamedTuple):
    """What to aggregate: ids and digests only, so that it can run in any thread or be repeated."""

    round_id: int
    base: BlobRef
    parts: tuple[Part, ...]
    """In order of device and task."""
    shared_count: int
    norm_factor: float | None = None
    weights: Weights = "examples"


class Aggregated(NamedTuple):
    """The result, already on disk."""

    round_id: int
    model: BlobRef
    metrics: Metrics | None


class JobFailed(NamedTuple):
    """It cannot be done, now or later; the round comes to nothing."""

    round_id: int
    reason: str


JobResult = Aggregated | JobFailed


class MissingUpdateError(Exception):
    """An update is not on disk any more."""


def scales_of(job: AggregateJob) -> list[float]:
    """For each part what its delta is scaled by."""
    norms = [part.norm for part in job.parts]
    if job.weights == "examples":
        return clip_scales(norms, job.norm_factor)
    # An update of a round with other weights may be here, whose steps nobody looked at.
    steps_norms = [steps_norm(part.plan, max(part.update.steps, 1)) for part in job.parts]
    weights = [weight_of(part.update.examples, part.staleness) for part in job.parts]
    return fednova_scales(weights, steps_norms, norms, job.norm_factor)


def contributions(job: AggregateJob, blobs: BlobStore) -> Iterator[Contribution]:
    """The updates of a round, one in memory at a time."""
    for (update, staleness, *_), scale in zip(job.parts, scales_of(job), strict=True):
        assert update.blob is not None
        content = blobs.read(update.blob.digest)
        delta = decode_vector(content, update.encoding, job.shared_count)
        yield Contribution(update.examples, delta, staleness, scale)


def next_model(job: AggregateJob, blobs: BlobStore) -> bytes:
    """The model that these updates make of the base, encoded as f32. The same job, the same bits.

    Raises:
        ValueError, OverflowError: the aggregate is unusable.
        MissingUpdateError: a stored update is gone.
        FileNotFoundError: the base model is.
    """
    base = decode_vector(blobs.read(job.base.digest), "f32", job.shared_count)
    try:
        delta = weighted_mean(contributions(job, blobs), job.shared_count)
    except FileNotFoundError as exc:
        raise MissingUpdateError(f"a stored update is gone: {exc}") from exc
    return encode_vector(apply_delta(base, delta), "f32")


def run_aggregate_job(job: AggregateJob, blobs: BlobStore, evaluate: Evaluate | None) -> JobResult:
    """Make the next global model. The same job gives the same bits.

    Raises:
        StateError: the disk is full or failing.
        FileNotFoundError: the base model is gone; nothing can go on without it.
    """
    try:
        content = next_model(job, blobs)
    except (ValueError, OverflowError) as exc:
        return JobFailed(job.round_id, f"the aggregate is unusable: {exc}")
    except MissingUpdateError as exc:
        return JobFailed(job.round_id, str(exc))
    reach("coordinator: aggregate computed")
    ref = blobs.put(content)
    reach("coordinator: model written")
    if evaluate is None:
        return Aggregated(job.round_id, ref, None)
    model = decode_vector(content, "f32", job.shared_count)
    return Aggregated(job.round_id, ref, evaluate(model))
