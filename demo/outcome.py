"""The result of a run: read from the coordinator's own store, judged, and written as JSON."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from demo.scene import Fate, Scene
from fedtide.measures import Metrics

ROUNDS = 45
"""Enough for the federation to come close to central training."""
GAP_MAX = 0.02
"""How far below central training the federation may end."""


@dataclass(frozen=True)
class RoundRecord:
    """One training round as the coordinator stored it."""

    round_id: int
    outcome: str
    seconds: float
    accuracy: float | None
    loss: float | None
    accepted: tuple[str, ...]
    """Devices whose updates are part of the model; none if the round was abandoned."""
    in_vain: tuple[str, ...]
    """Devices whose updates came in time, to a round that was abandoned."""
    late: tuple[str, ...]
    invited: tuple[str, ...]
    upload_bytes: int
    """Of the accepted updates."""

    @property
    def abandoned(self) -> bool:
        """Whether it came to nothing."""
        return self.outcome == "abandoned"


@dataclass(frozen=True)
class ModelRecord:
    """A global model as the coordinator stored it."""

    round_id: int
    """The round that made it; 0: the model that all began with."""
    accuracy: float | None
    loss: float | None


@dataclass(frozen=True)
class Outcome:
    """What `results/demo.json` says. Accuracies are fractions of the coordinator's test set."""

    accuracy: float
    central_accuracy: float
    best_single_accuracy: float
    rounds: int
    """Rounds of training that made a model."""
    abandoned: int
    """Rounds that did not."""
    dropouts: int
    late: int
    seconds: float
    seed: int
    broker: str
    faults: bool
    test_examples: int
    parameters: int
    upload_bytes: int
    inference_accuracy: float
    accuracy_by_round: tuple[float, ...]
    """Of the global model after round 0, 1, 2, ...; an abandoned round leaves the one before."""
    single_accuracies: dict[str, float]
    runtimes: dict[str, str]
    digits: dict[str, tuple[int, ...]]
    versions: dict[str, str]

    def failure(self) -> str | None:
        """Why the federation did not do what it promises; None: it did."""
        if self.accuracy <= self.best_single_accuracy:
            return (
                f"after {self._rounds_words()} the federation's {self.accuracy:.1%} is no better "
                f"than the best single device's {self.best_single_accuracy:.1%}{self._advice()}"
            )
        if self.accuracy < self.central_accuracy - GAP_MAX:
            gap = 100 * (self.central_accuracy - self.accuracy)
            return (
                f"after {self._rounds_words()} the federation's {self.accuracy:.1%} is {gap:.1f} "
                f"points below central training's {self.central_accuracy:.1%}, and at most "
                f"{100 * GAP_MAX:g} are allowed{self._advice()}"
            )
        return None

    def _rounds_words(self) -> str:
        return f"{self.rounds} {'round' if self.rounds == 1 else 'rounds'}"

    def _advice(self) -> str:
        """What to do about it, if that is known."""
        return f"; more rounds close the gap: --rounds {ROUNDS}" if self.rounds < ROUNDS else ""

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_rounds(state_dir: Path) -> list[RoundRecord]:
    """The training rounds in the coordinator's store: read as the report needs them."""
    with closing(_open_store(state_dir)) as database:
        models = {
            round_id: _quality(metrics)
            for round_id, metrics in database.execute("SELECT round_id, metrics_json FROM models")
        }
        updates: dict[int, list[tuple[str, str, int]]] = {}
        for round_id, *update in database.execute(
            "SELECT round_id, device_id, verdict, payload_bytes FROM updates ORDER BY device_id"
        ):
            updates.setdefault(round_id, []).append(tuple(update))
        return [
            _record(row, models.get(row[0], (None, None)), updates.get(row[0], []))
            for row in database.execute(
                "SELECT round_id, outcome, closed_at_ms - opened_at_ms, cohort_json FROM rounds"
                " WHERE kind = 'train' AND closed_at_ms IS NOT NULL ORDER BY round_id"
            )
        ]


def read_models(state_dir: Path) -> list[ModelRecord]:
    """The global models in the coordinator's store, from the one that all began with."""
    with closing(_open_store(state_dir)) as database:
        rows = database.execute("SELECT round_id, metrics_json FROM models ORDER BY version")
        return [ModelRecord(round_id, *_quality(metrics)) for round_id, metrics in rows]


def count_answers(state_dir: Path) -> int:
    """Devices that took part in the final evaluation; the last answer ends it before it is told."""
    with closing(_open_store(state_dir)) as database:
        (count,) = database.execute(
            "SELECT count(*) FROM updates JOIN rounds USING (round_id)"
            " WHERE kind = 'evaluate' AND verdict = 'accepted'"
        ).fetchone()
    return int(count)


def accuracy_by_round(models: list[ModelRecord], rounds_count: int) -> tuple[float, ...]:
    """Of the global model after each round, from round 0."""
    made = {model.round_id: model.accuracy for model in models}
    curve: list[float] = []
    for round_id in range(rounds_count + 1):
        accuracy = made.get(round_id)
        if accuracy is not None:
            curve.append(accuracy)
        elif curve:
            curve.append(curve[-1])
    return tuple(curve)


def _quality(metrics_json: str | None) -> tuple[float | None, float | None]:
    """Accuracy and loss, as the coordinator measured them."""
    if metrics_json is None:
        return None, None
    metrics = msgspec.json.decode(metrics_json, type=Metrics)
    return metrics.accuracy, metrics.loss


def _open_store(state_dir: Path) -> sqlite3.Connection:
    """To read only."""
    path = (state_dir / "coordinator.db").resolve()
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def _record(
    row: tuple[Any, ...], model: tuple[Any, ...], updates: list[tuple[str, str, int]]
) -> RoundRecord:
    round_id, outcome, duration_ms, cohort_json = row
    in_time = [(name, size) for name, verdict, size in updates if verdict == "accepted"]
    counted, in_vain = ([], in_time) if outcome == "abandoned" else (in_time, [])
    return RoundRecord(
        round_id=round_id,
        outcome=outcome,
        seconds=duration_ms / 1000,
        accuracy=model[0],
        loss=model[1],
        accepted=tuple(name for name, _ in counted),
        in_vain=tuple(name for name, _ in in_vain),
        late=tuple(name for name, verdict, _ in updates if verdict == "discarded"),
        invited=tuple(sorted(json.loads(cohort_json))),
        upload_bytes=sum(size for _, size in counted),
    )


def fates(records: list[RoundRecord], scene: Scene) -> dict[str, list[Fate]]:
    """Per device, one fate for each recorded round: the store's word before what was seen."""
    table: dict[str, list[Fate]] = {}
    for name, device in scene.devices.items():
        table[name] = []
        for record in records:
            seen = device.fates.get(record.round_id, Fate.ABSENT)
            if name in record.accepted:
                fate = Fate.COUNTED
            elif seen in (Fate.KILLED, Fate.OFFLINE):
                fate = seen
            elif record.abandoned:
                fate = Fate.ABANDONED
            else:
                fate = Fate.LATE if name in record.late else Fate.ABSENT
            table[name].append(fate)
    return table
