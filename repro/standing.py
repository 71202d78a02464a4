"""Where a cell of the paper's tables stands: what our runs say of it so far."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from repro.race import Verdict, next_step, verdict
from repro.records import Record
from repro.rows import ROWS, Row

Records = Mapping[str, Record]
"""By the name of the row."""
NEAR = 1.15
"""Times the paper's rounds: as near as the paper is to itself (its Tables 1 and 2 give 18 and 20,
206 and 229 rounds for the same settings)."""


class Standing(Struct, frozen=True):
    """Of one cell, from the runs of one seed."""

    rounds: float | None
    """To the target, of the best rate; None: no run got there."""
    last_round: int
    best: float
    """Accuracy of the best run so far."""
    choice: Verdict
    tried: tuple[float, ...]
    """Learning rates."""
    complete: bool
    """The search for the learning rate is done."""
    training_s: float
    """Of all runs of the row, whatever their seed."""


def standing(row: Row, records: Records, seed: int = 0) -> Standing | None:
    """None: nothing was run."""
    record = records.get(row.name)
    if record is None:
        return None
    trials = record.trials(row.target, row.experiment.rounds_max, seed)
    if not trials:
        return None
    choice = verdict(trials, row.search)
    best = trials.get(choice.learning_rate or 0.0) or next(iter(trials.values()))
    return Standing(
        best.rounds,
        best.last_round,
        best.best(),
        choice,
        tuple(sorted(trials)),
        next_step(row.search, trials) is None,
        sum(run.training_s for run in record.runs),
    )


def baseline_of(row: Row) -> Row | None:
    """The row that the paper's factor is relative to."""
    found = (
        other
        for other in ROWS
        if (other.table, other.line, other.column) == (row.table, row.baseline, row.column)
    )
    return next(found, None)


def paper_factor(row: Row) -> float | None:
    """Times fewer rounds than the baseline, in the paper; None: it is the baseline."""
    baseline = baseline_of(row)
    return None if baseline in (None, row) else baseline.paper_rounds / row.paper_rounds


def our_factor(row: Row, records: Records) -> tuple[float, bool] | None:
    """Times fewer rounds than the baseline, and whether that is a lower bound: the baseline ran so
    long and did not get there. None: not known."""
    baseline = baseline_of(row)
    here = standing(row, records)
    if baseline in (None, row) or here is None or here.rounds is None:
        return None
    there = standing(baseline, records)
    if there is None:
        return None
    if there.rounds is None:
        return there.last_round / here.rounds, True
    return there.rounds / here.rounds, False
