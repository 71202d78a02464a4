"""The coordinator's configuration (docs/configuration.md)."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from coordinator.local_steps import objection
from fedtide.config import BrokerConfig, Positive
from fedtide.messages import Encoding, Identifier
from fedtide.plan import Plan

Weights = Literal["examples", "fednova"]
LEARNING_RATE_MIN = 1e-30
"""Less is as good as nothing to float32."""


class RoundsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Synchronous rounds (McMahan et al. 2016; over-selection after Bonawitz et al. 2019, §3).

    Or buffered ones (FedBuff, Nguyen et al. 2022).
    """

    count: Positive = 10
    """Rounds that must succeed: versions of the model to make."""
    mode: Literal["synchronous", "buffered"] = "synchronous"
    late: Literal["discard", "discount"] = "discard"
    """Updates whose round has closed: discarded, or carried with weight 1/sqrt(1 + staleness)."""
    staleness_max: Annotated[int, Meta(ge=0, le=1000)] = 10
    """Versions that an update may be behind."""
    weights: Weights = "examples"
    """What an update counts with: its examples, or (FedNova) these for each of its steps."""
    buffer_size: Positive = 10
    """K: updates that make the next version, in the buffered mode."""
    concurrency: Positive = 20
    """M: devices at work at once, in the buffered mode."""
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
    devices_wait_ms: Annotated[int, Meta(ge=1_000, lt=2**53)] = 86_400_000
    """Stop, with a reason, when they are not there for this long."""
    collect_ms: Annotated[int, Meta(ge=100, lt=2**53)] = 60_000
    """From the invitation to the deadline; buffered: until a device loses its place."""
    aggregate_ms: Annotated[int, Meta(ge=1_000, lt=2**53)] = 3_600_000
    """Longest time to make a model of a round's updates; then the round is abandoned."""
    back_off_ms: Annotated[int, Meta(ge=100, lt=2**53)] = 5_000
    """Pause after an abandoned round; doubles with each in a row, up to a minute."""
    abandoned_max: Positive = 20
    """Stop, with a reason, after this many abandoned rounds in a row."""
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    """Seeds the lottery of devices and the order of their examples."""
    learning_rate_decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """The plan's learning rate is multiplied by this with each new version of the model."""

    @property
    def late_counts(self) -> bool:
        """Whether an update can count whose round has closed."""
        return self.mode == "buffered" or self.late == "discount"


class EvaluationConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Evaluation of every global model by the coordinator."""

    data: Path | None = None
    """.npz with arrays `x` and `y`; without it, only the devices' held-out data speak."""
    batch_size: Positive = 256


class VettingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Which updates count, and who is left alone for a while."""

    examples_max: Positive = 1_000_000
    """Most examples of an update: its weight is bounded."""
    norm_factor: Annotated[float, Meta(ge=0, le=1e6)] = 10.0
    """Most times the median L2 norm that an update's may be; 0: any norm."""
    strikes_max: Positive = 3
    """Rejected updates in a row after which a device is quarantined."""
    quarantine_ms: Annotated[int, Meta(ge=0, lt=2**53)] = 3_600_000
    """How long it is not invited then; 0: never."""


class HistoryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of the past."""

    rounds_kept: Positive = 100
    """Rounds whose updates stay on disk, so that their models can be recomputed."""


class MetricsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where Prometheus finds the coordinator's metrics."""

    listen: str | None = None
    """ADDRESS:PORT; without it nothing listens. IPv6 in brackets."""
    public: bool = False
    """Whether it may be an address that other machines reach: the page has neither password nor
    TLS."""

    def __post_init__(self) -> None:
        """An address that can be listened at, and no public one by mistake."""
        if self.listen is not None:
            address, _ = self.address()
            if not (self.public or ip_address(address).is_loopback):
                raise ValueError(
                    f"metrics.listen {self.listen!r} can be reached from other machines, and the "
                    "page has neither password nor TLS; expected a loopback address such as "
                    "127.0.0.1:9464, or metrics.public = true beside it"
                )

    def address(self) -> tuple[str, int]:
        """IP address and port of `listen`."""
        host, _, port = (self.listen or "").rpartition(":")
        host = "127.0.0.1" if host == "localhost" else host
        try:
            if port.isascii() and port.isdecimal() and 0 < int(port) < 65536:
                bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
                return str(ip_address(bare)), int(port)
        except ValueError:
            pass
        raise ValueError(
            f"metrics.listen is {self.listen!r}: expected ADDRESS:PORT, such as 127.0.0.1:9464"
        )


class CoordinatorConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `coordinator.toml`."""

    federation: Identifier
    bundle: Path
    state_dir: Path
    identity: Path | None = None
    """Folder with key and certificate: TLS both ways, and every message is sealed."""
    members: Path | None = None
    """File of the devices in good standing and their keys, which the registrar writes."""
    broker: BrokerConfig = BrokerConfig()
    rounds: RoundsConfig = RoundsConfig()
    plan: Plan = Plan()
    evaluation: EvaluationConfig = EvaluationConfig()
    vetting: VettingConfig = VettingConfig()
    history: HistoryConfig = HistoryConfig()
    metrics: MetricsConfig = MetricsConfig()
    encoding: Encoding = "f32"
    """How devices encode their updates."""
    hello_ms: Annotated[int, Meta(ge=1_000, lt=2**53)] = 30_000
    """How often a device says what it holds and what it owes."""

    def __post_init__(self) -> None:
        """One way to size a cohort, which a buffer has not, and a quorum that can be reached.

        A learning rate in the last round that is still one, and steps that can be weighed. And the
        keys of devices, where messages are sealed.
        """
        if (self.identity is None) != (self.members is None):
            raise ValueError("give both `identity` and `members`, or neither")
        rounds, size = self.rounds, self.rounds.cohort_size
        reason = objection(self.plan) if rounds.weights == "fednova" else ""
        if reason:
            raise ValueError(f'rounds.weights "fednova" cannot weigh the steps: {reason}')
        decay = rounds.learning_rate_decay
        last = self.plan.learning_rate * decay ** (rounds.count - 1)
        if decay < 1 and last < LEARNING_RATE_MIN:
            raise ValueError(
                f"rounds.learning_rate_decay {decay} leaves a learning rate of {last:.3g} in round "
                f"{rounds.count:,}, which changes nothing; choose a decay nearer to 1"
            )
        if rounds.mode == "buffered":
            if rounds.quorum > rounds.buffer_size:
                raise ValueError(
                    f"rounds.quorum {rounds.quorum} exceeds rounds.buffer_size {rounds.buffer_size}"
                )
            return
        if (size is None) == (rounds.cohort_fraction is None):
            raise ValueError("give either rounds.cohort_size or rounds.cohort_fraction")
        if size is not None and rounds.quorum > size:
            raise ValueError(f"rounds.quorum {rounds.quorum} exceeds rounds.cohort_size {size}")
