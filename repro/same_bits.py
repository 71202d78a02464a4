"""Two runs of one experiment side by side: which version of the model is the first to differ."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from repro.experiment import Experiment


class Comparison(Struct, frozen=True):
    """Of the versions that both runs should have; digests are SHA-256 of the model as f32."""

    expected: int
    """Versions to compare, the initial model included."""
    same: int
    """From the first on."""
    differs: tuple[int, str, str] | None = None
    """The first version that differs, with the simulator's digest and the real one's."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compare."""
        return self.differs is not None or self.same == self.expected

    def verdict(self) -> str:
        """One line for people."""
        if self.differs is not None:
            version, simulated, real = self.differs
            return (
                f"OTHER bits from version {version} on: {real[:12]} over MQTT, "
                f"{simulated[:12]} in the simulator"
            )
        return f"same bits for {self.same} of {self.expected} versions"


class OverMqtt(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a run over MQTT."""

    name: str
    experiment: Experiment
    comparison: Comparison
    rounds: float | None
    """To the target, interpolated; None: not reached."""
    digest: str
    """Of the newest model."""
    curve: tuple[tuple[int, float], ...]
    """(round, accuracy) as the coordinator measured it."""
    round_s: float | None
    """Median time of a round."""
    clients_bytes: int | None
    """Memory of all client processes together at its highest, shared pages counted once."""
    versions: dict[str, str]
    """Of the programs."""


def compare(simulated: Mapping[int, str], real: Mapping[int, str]) -> Comparison:
    """Digests by version, the simulator's and those that are there over MQTT so far."""
    same = 0
    for version in sorted(simulated):
        there = real.get(version)
        if there is None:
            break
        if there != simulated[version]:
            return Comparison(len(simulated), same, (version, simulated[version], there))
        same += 1
    return Comparison(len(simulated), same)
