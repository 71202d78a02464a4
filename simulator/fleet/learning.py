"""What a simulated federation learns, apart from the time that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fedtide.plan import Plan
from simulator.fleet import events


class Part(NamedTuple):
    """One update that counts."""

    device: int
    plan: Plan
    """As the device did it: its seed, and the steps it made."""
    base_version: int
    staleness: int
    steps: int


class Learning(Protocol):
    """What is learned, apart from the time that it takes."""

    def advance(self, version: int, parts: Sequence[Part], /) -> list[events.Evaluated]:
        """Make `version` of the one before it and these, in the order of aggregation.

        How good earlier versions are is told as it becomes known; `at_ms` is filled in later.
        """

    def settle(self) -> list[events.Evaluated]:
        """No more versions are made."""


class Modelled:
    """Nothing is learned: only time matters."""

    def advance(self, _version: int, _parts: Sequence[Part], /) -> list[events.Evaluated]:
        """Do nothing."""
        return []

    def settle(self) -> list[events.Evaluated]:
        """Nothing is measured."""
        return []
