"""Small records that the coordinator keeps about rounds and devices."""

from __future__ import annotations

from typing import NamedTuple

from coordinator.config import Weights
from fedtide.messages import Encoding, Kind
from fedtide.plan import Plan


class Terms(NamedTuple):
    """What a round asks of its cohort, and by what their updates are judged."""

    plan: Plan
    encoding: Encoding
    kind: Kind
    base_version: int
    """Of the model that its tasks start from."""
    norm_reference: float | None
    """The median norm that updates are held against; None: not known yet."""
    norm_factor: float | None
    weights: Weights = "examples"


class Standing(NamedTuple):
    """How a device has been doing."""

    strikes: int = 0
    """Rejected updates in a row."""
    until_ms: int = 0
    """Not invited before."""
    reason: str = ""
