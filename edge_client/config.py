"""The client's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from edge_client.conditions import ConditionsConfig
from edge_client.data.config import DataConfig
from fedtide.config import BrokerConfig, Positive
from fedtide.messages import Identifier

THREADS_MAX = 1024


class TrainingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How this device trains."""

    runtime: Literal["auto", "portable", "ort_training"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=THREADS_MAX)] = 1
    cpu_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Part of the time that training may use; it rests after each step for the remainder."""
    lost_ms_max: Positive = 60_000
    """Most training that a power cut costs where epochs are shorter than this; else one epoch."""


class ClientConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `client.toml`."""

    federation: Identifier
    state_dir: Path
    data: DataConfig
    device: Identifier = ""
    """Its name; with an identity, its certificate's."""
    identity: Path | None = None
    """Folder with key and certificate: TLS both ways, and every message is sealed."""
    broker: BrokerConfig = BrokerConfig(give_up_ms=0)
    training: TrainingConfig = TrainingConfig()
    conditions: ConditionsConfig = ConditionsConfig()
    outbox_bytes_max: Positive = 1_000_000_000
    """Of updates that wait for a receipt; beyond it the oldest is given up, never the newest."""

    def __post_init__(self) -> None:
        """A name, given or certified."""
        if not self.device and self.identity is None:
            raise ValueError("give `device`, or `identity`, whose certificate names it")
