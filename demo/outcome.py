"""The result of a run: read from the coordinator's own store, judged, and written as JSON."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demo.scene import Fate, Scene

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
    late: tuple[str, ...]
    invited: tuple[str, ...]
    upload_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What `results/demo.json` says. Accuracies are fractions of the coordinator's test set."""

    accuracy: float
    central_accuracy: float
    best_single_accuracy: float
    rounds: int
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
    single_accuracies: dict[str, float]
    runtimes: dict[str, str]
    digits: dict[str, tuple[int, ...]]
    versions: dict[str, str]

    def failure(self) -> str | None:
        """Why the federation did not do what it promises; None: it did."""
        if self.accuracy <= self.best_single_accuracy:
            return (
                f"the federation's {self.accuracy:.1%} is no better than the best single "
                f"device's {self.best_single_accuracy:.1%}"
            )
        if self.accuracy < self.central_accuracy - GAP_MAX:
            return (
                f"the federation's {self.accuracy:.1%} is more than {100 * GAP_MAX:g} points below "
                f"central training's {self.central_accuracy:.1%}"
            )
        return None

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_rounds(state_dir: Path) -> list[RoundRecord]:
    """The training rounds in the coordinator's store: read as the report needs them."""
    database = sqlite3.connect(
        f"{(state_dir / 'coordinator.db').resolve().as_uri()}?mode=ro", uri=True
    )
    try:
        models = {
            row[0]: row[1:]
            for row in database.execute("SELECT round_id, accuracy, loss FROM models")
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
    finally:
        database.close()


def _record(
    row: tuple[Any, ...], model: tuple[Any, ...], updates: list[tuple[str, str, int]]
) -> RoundRecord:
    round_id, outcome, duration_ms, cohort_json = row
    return RoundRecord(
        round_id=round_id,
        outcome=outcome,
        seconds=duration_ms / 1000,
        accuracy=model[0],
        loss=model[1],
        accepted=tuple(name for name, verdict, _ in updates if verdict == "accepted"),
        late=tuple(name for name, verdict, _ in updates if verdict == "discarded"),
        invited=tuple(sorted(json.loads(cohort_json))),
        upload_bytes=sum(size for _, verdict, size in updates if verdict == "accepted"),
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
            else:
                fate = Fate.LATE if name in record.late else Fate.ABSENT
            table[name].append(fate)
    return table
