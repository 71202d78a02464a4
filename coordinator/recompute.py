"""Any model again, bit for bit, from the store alone: its base, its updates, their weights."""

from __future__ import annotations

from coordinator.aggregate_job import AggregateJob, next_model
from coordinator.store import Model, Store
from fedtide.bundle import sha256_hex
from fedtide.errors import StateError


def job_of(store: Store, model: Model) -> AggregateJob:
    """What `model`, any version but 0, was made of.

    Raises:
        StateError: the store does not say it.
    """
    terms = store.terms(model.round_id)
    base = store.model(terms.base_version)
    if base is None or terms.base_version != model.version - 1:
        raise StateError(f"the store does not say what model {model.version} was made from")
    parts = tuple(store.parts(model.round_id))
    return AggregateJob(
        model.round_id,
        base.ref,
        parts,
        model.ref.size_bytes // 4,
        terms.norm_factor,
        terms.weights,
    )


def recompute(store: Store, model: Model) -> str:
    """The digest that this version must have; 0, which nothing made, is read and hashed again.

    Raises:
        MissingUpdateError: an update that it was made of is not kept any more.
        FileNotFoundError: the model (version 0), or the one before it, is damaged or gone.
        StateError: the store does not say what it was made of.
    """
    if model.version == 0:
        return sha256_hex(store.blobs.read(model.ref.digest))
    try:
        return sha256_hex(next_model(job_of(store, model), store.blobs))
    except (ValueError, OverflowError) as exc:
        raise StateError(f"the updates of model {model.version} are unusable: {exc}") from exc
