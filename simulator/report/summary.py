"""What is said about a simulation: the content of `summary.json` (docs/simulation-report.md)."""

from __future__ import annotations

from msgspec import Struct

HOUR_MS = 3_600_000


class Reached(Struct, frozen=True):
    """When the running best accuracy crossed the target, linear between models."""

    rounds: float
    virtual_ms: float
    """Since the first training round opened."""
    bytes: float
    """Downloads and uploads of all devices until then."""


class Work(Struct, frozen=True):
    """Device time spent in training."""

    spent_ms: int
    counted_ms: int
    """In updates that are in a model."""
    wasted_ms: dict[str, int]
    """By cause: dropped, late, not needed, declined, rejected, abandoned, unfinished, repeated."""
    wasted_share: float
    """Of the time spent; 0 if none was."""


class Participation(Struct, frozen=True):
    """How evenly devices are heard."""

    invited_share: float
    """Devices that were ever invited."""
    counted_share: float
    """Devices of which an update ever counted."""
    gini: float | None
    """Of the devices' numbers of counted updates: 0 even, 1 all from one. None: nothing counted."""
    jain: float | None
    """Of the same: 1 even, 1/devices all from one."""


class ProfileFigures(Struct, frozen=True):
    """Devices of one profile."""

    devices: int
    tasks: int
    counted: int
    """Updates in models."""
    counted_share: float
    """Devices of which an update ever counted."""
    dropped: dict[str, int]
    """Dropouts by phase, those after which a device came back included."""
    late: dict[str, int]
    """Late tasks by what the device was at when the round closed."""
    not_needed: int
    spent_ms: int
    wasted_ms: int


class Point(Struct, frozen=True):
    """A measured version of the global model."""

    version: int
    virtual_ms: int
    bytes: int
    accuracy: float | None
    loss: float | None


class RoundFigures(Struct, frozen=True):
    """A training round."""

    round_id: int
    opened_ms: int
    closed_ms: int | None
    """None: open when the run ended."""
    outcome: str
    """enough, answered, deadline, abandoned, open."""
    counted: int
    waited_ms: dict[str, int]
    """Where the time went, by what its last counted device was at: download, training, upload,
    away; others: from its answer to the end."""
    download_bytes: int
    """By all devices since the round before closed."""
    upload_bytes: int

    @property
    def duration_ms(self) -> int | None:
        """None: it never closed."""
        return None if self.closed_ms is None else self.closed_ms - self.opened_ms


class Durations(Struct, frozen=True):
    """Of the rounds that closed."""

    least_ms: int
    median_ms: float
    p90_ms: float
    most_ms: int


class PolicyFigures(Struct, frozen=True):
    """One policy."""

    name: str
    complete: bool
    """False: the run was interrupted."""
    succeeded: bool
    """Whether all rounds that were asked for are done."""
    reason: str
    """Why it ended."""
    rounds_asked: int
    rounds_done: int
    rounds_abandoned: int
    virtual_ms: int
    """Until the last model was made, if it succeeded; else until the last event."""
    first_round_ms: int
    """When the first training round opened: until then there were too few devices. 0: none did."""
    tasks: int
    updates_counted: int
    download_bytes: int
    upload_bytes: int
    rounds_per_hour: float
    """Of virtual time since the first round opened."""
    updates_per_hour: float
    final_accuracy: float | None
    best_accuracy: float | None
    final_loss: float | None
    target_reached: Reached | None
    work: Work
    participation: Participation
    fates: dict[str, int]
    """Tasks by what became of them."""
    profiles: dict[str, ProfileFigures]
    durations: Durations | None
    rounds: tuple[RoundFigures, ...]
    curve: tuple[Point, ...]
    verdict: str = ""
    """In a sentence or two."""

    @property
    def bytes(self) -> int:
        """Down and up."""
        return self.download_bytes + self.upload_bytes

    def since_first_round_ms(self, at_ms: float) -> float:
        """What a time of the run is since the first training round opened; before: 0."""
        return max(0.0, at_ms - self.first_round_ms)


class Summary(Struct, frozen=True):
    """A scenario and its policies."""

    scenario: str
    seed: int
    devices: int
    learning: str
    """real, modelled."""
    target_accuracy: float | None
    """None: no accuracy was measured."""
    target_given: bool
    """False: chosen so that every policy reaches it: 99% of the least of their best."""
    policies: tuple[PolicyFigures, ...]
    fedtide: str
    format: int = 1

    @property
    def learned(self) -> bool:
        """Whether there are accuracies to compare."""
        return any(policy.best_accuracy is not None for policy in self.policies)
