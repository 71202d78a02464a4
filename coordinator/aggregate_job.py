"""The heavy part of a round, away from the network: reduce, write the model, evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from coordinator.aggregation import Contribution, apply_delta, weighted_mean
from fedtide.blobs import BlobStore
from fedtide.failpoints import reach
from fedtide.measures import Metrics
from fedtide.messages import BlobRef, Update
from fedtide.vectors import Vector, decode_vector, encode_vector

Evaluate = Callable[[Vector], Metrics]


class AggregateJob(NamedTuple):
    """What to aggregate: ids and digests only, so that it can run in any thread or be repeated."""

    round_id: int
    base: BlobRef
    updates: tuple[Update, ...]
    shared_count: int


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


def contributions(job: AggregateJob, blobs: BlobStore) -> Iterator[Contribution]:
    """The updates of a round, one in memory at a time, in order of device id."""
    for update in job.updates:
        assert update.blob is not None
        content = blobs.read(update.blob.digest)
        delta = decode_vector(content, update.encoding, job.shared_count)
        yield Contribution(update.examples, delta)


def run_aggregate_job(job: AggregateJob, blobs: BlobStore, evaluate: Evaluate | None) -> JobResult:
    """Make the next global model. The same job gives the same bits.

    Raises:
        StateError: the disk is full or failing.
        FileNotFoundError: the base model is gone; nothing can go on without it.
    """
    base = decode_vector(blobs.read(job.base.digest), "f32", job.shared_count)
    try:
        delta = weighted_mean(contributions(job, blobs), job.shared_count)
        model = apply_delta(base, delta)
        content = encode_vector(model, "f32")
    except (ValueError, OverflowError) as exc:
        return JobFailed(job.round_id, f"the aggregate is unusable: {exc}")
    except FileNotFoundError as exc:
        return JobFailed(job.round_id, f"a stored update is gone: {exc}")
    reach("coordinator: aggregate computed")
    ref = blobs.put(content)
    reach("coordinator: model written")
    return Aggregated(job.round_id, ref, None if evaluate is None else evaluate(model))
