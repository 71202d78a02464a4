"""What a client is asked to do: `ClientUpdate(k, w)` of McMahan et al. 2016, Algorithm 1."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """Local training of one round. FedSGD is `epochs=1, batch_size="all"`."""

    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """E, local passes over the data."""
    batch_size: Annotated[int, Meta(ge=1, le=1_000_000)] | Literal["all"] = 10
    """B, examples in a local minibatch, or the whole local set as one batch (B = infinity)."""
    learning_rate: Annotated[float, Meta(gt=0, le=1_000)] = 0.1
    optimizer: Literal["sgd"] = "sgd"
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    """Seeds the order of the examples."""
    steps_max: Annotated[int, Meta(ge=1)] | None = None
    """At most this many optimizer steps in all, whatever the epochs."""
