"""The coordinator's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from fedtide.config import BrokerConfig, Positive
from fedtide.messages import Encoding, Identifier
from fedtide.plan import Plan


class RoundsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Synchronous rounds (McMahan et al. 2016; over-selection after Bonawitz et al. 2019, §3)."""

    count: Positive = 10
    """Rounds that must succeed."""
    cohort_size: Positive | None = None
    """Updates wanted in a round. Give this or `cohort_fraction`."""
    cohort_fraction: Annotated[float, Meta(gt=0, le=1)] | None = None
    """C: the same as a fraction of the devices that are online; at least one."""
    over_selection: Annotated[float, Meta(ge=1, le=10)] = 1.0
    """Invite this many times the updates wanted; the round closes when enough are there."""
    quorum: Positive = 1
    """Least updates that make a round count when its deadline comes."""
    devices_min: Positive = 1
    """Wait for this many devices to be online before a round opens."""
    devices_wait_ms: Annotated[int, Meta(ge=1_000)] = 86_400_000
    """Stop, with a reason, when they are not there for this long."""
    collect_ms: Annotated[int, Meta(ge=100)] = 60_000
    """From the invitation to the deadline."""
    back_off_ms: Annotated[int, Meta(ge=100)] = 5_000
    """Pause after an abandoned round; doubles with each in a row, up to a minute."""
    abandoned_max: Positive = 20
    """Stop, with a reason, after this many abandoned rounds in a row."""
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    """Seeds the lottery of devices and the order of their examples."""


class EvaluationConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Evaluation of every global model by the coordinator."""

    data: Path | None = None
    """.npz with arrays `x` and `y`; without it, only the devices' held-out data speak."""
    batch_size: Positive = 256


class CoordinatorConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `coordinator.toml`."""

    federation: Identifier
    bundle: Path
    state_dir: Path
    broker: BrokerConfig = BrokerConfig()
    rounds: RoundsConfig = RoundsConfig()
    plan: Plan = Plan()
    evaluation: EvaluationConfig = EvaluationConfig()
    encoding: Encoding = "f32"
    """How devices encode their updates."""
    hello_ms: Annotated[int, Meta(ge=1_000)] = 30_000
    """How often a device says what it holds and what it owes."""

    def __post_init__(self) -> None:
        """Exactly one of the two ways to size a cohort, and a quorum that it can reach."""
        size = self.rounds.cohort_size
        if (size is None) == (self.rounds.cohort_fraction is None):
            raise ValueError("give either rounds.cohort_size or rounds.cohort_fraction")
        quorum = self.rounds.quorum
        if size is not None and quorum > size:
            raise ValueError(f"rounds.quorum {quorum} exceeds rounds.cohort_size {size}")
