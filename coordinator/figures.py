"""What is measured of a running coordinator: figures of a moment, taken by its own thread.

No device is named: what is counted by label is a handful of words that the code itself chooses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from coordinator.round_state import RoundState
from coordinator.store import Model, Store

DURATIONS_S = (1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1_800.0, 3_600.0, 14_400.0, 86_400.0)
"""Bounds of the histogram of rounds."""
BACKUP_NAME = "last_backup"
"""In the state folder: modified when the last backup was taken."""


class Rounds(NamedTuple):
    """Rounds that have closed since the store was made."""

    outcomes: dict[tuple[str, str], int]
    """Counts by kind and outcome."""
    durations: tuple[int, ...]
    """Training rounds within each of `DURATIONS_S`, and beyond."""
    seconds: float


class Figures(NamedTuple):
    """See the module."""

    at_ms: int
    state: RoundState
    rounds: Rounds
    counts: dict[str, int]
    """Verdicts and refusals, as `Store.count` names them."""
    quarantined: int
    model: Model
    judged: Model
    """The newest whose quality is known: that of the newest of all often is only a round later."""
    aggregate_ms: int | None
    """What the last model took to make."""


class FigureTaker:
    """Takes them; for the thread that owns the store."""

    def __init__(self, store: Store, aggregate_ms: Callable[[], int | None]) -> None:
        self._store = store
        self._aggregate_ms = aggregate_ms
        self._seen = 0
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._durations = [0] * (len(DURATIONS_S) + 1)
        self._seconds = 0.0

    def take(self, at_ms: int) -> Figures:
        """Now.

        Raises:
            StateError: the disk is failing.
        """
        self._look_at_rounds()
        store, state = self._store, self._store.load_state()
        model, before = store.model(state.model_version), store.model(state.model_version - 1)
        assert model is not None, "every version up to the state's is committed with it"
        known = model.metrics is not None or model.held_out is not None
        return Figures(
            at_ms=at_ms,
            state=state,
            rounds=Rounds(dict(self._outcomes), tuple(self._durations), self._seconds),
            counts=store.counts(),
            quarantined=len(store.quarantined(at_ms)),
            model=model,
            judged=model if known or before is None else before,
            aggregate_ms=self._aggregate_ms(),
        )

    def _look_at_rounds(self) -> None:
        """At those that are new: a store may hold a hundred thousand."""
        for round_id, kind, outcome, duration_ms in self._store.closed_rounds(self._seen):
            self._seen = round_id
            self._outcomes[kind, outcome] += 1
            if kind == "train":
                seconds = max(0, duration_ms) / 1000  # a clock may have been set back
                self._durations[bisect_left(DURATIONS_S, seconds)] += 1
                self._seconds += seconds
