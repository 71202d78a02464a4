"""Policy against policy as rows of text: for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.report.digest import CAUSES
from simulator.report.summary import PolicyFigures, Summary
from simulator.report.verdict import headline
from simulator.report.words import bytes_words, number_words, share_words, time_words

_NONE = "-"
_COLUMN_WIDTH = 14
_MAIN_CAUSES = ("dropped", "late", "not needed")
"""Shown also where they are 0."""


class Row(NamedTuple):
    """A line of the table."""

    label: str
    cells: tuple[str, ...]
    """One a policy."""
    best: frozenset[int] = frozenset()
    """Indices of the policies that do best; none where more is neither better nor worse."""
    detail: bool = False
    """Part of the row above."""


def rows_of(summary: Summary) -> list[Row]:
    """Everything that is compared, as words; one cell a policy."""
    policies = summary.policies

    def row(label: str, *cells: str, detail: bool = False) -> Row:
        return Row(label, cells, detail=detail)

    rows = _learned_rows(summary) if summary.learned else _loss_rows(summary)
    rates = [p.rounds_per_hour or None for p in policies]
    updates = [p.updates_per_hour or None for p in policies]
    wasted = [p.work.wasted_share if p.work.spent_ms else None for p in policies]
    shares = [_NONE if share is None else share_words(share) for share in wasted]
    least_waste = best(wasted, shares)
    heard = [p.participation.counted_share or None for p in policies]
    gini = [p.participation.gini for p in policies]
    jain = [p.participation.jain for p in policies]
    seen = (cause for cause in CAUSES if any(p.work.wasted_ms.get(cause) for p in policies))
    causes = (*_MAIN_CAUSES, *(cause for cause in seen if cause not in _MAIN_CAUSES))
    before = (time_words(p.first_round_ms) for p in policies)
    return [
        *rows,
        row("rounds done, of", *(f"{p.rounds_done:,} of {p.rounds_asked:,}" for p in policies)),
        row("rounds abandoned", *(f"{p.rounds_abandoned:,}" for p in policies)),
        row("virtual time", *(time_words(p.virtual_ms) for p in policies)),
        row("before the first round", *before, detail=True),
        _compared("rounds an hour", rates, number_words, most=True),
        _compared("counted updates an hour", updates, number_words, most=True),
        row("downloaded", *(bytes_words(p.download_bytes) for p in policies)),
        row("uploaded", *(bytes_words(p.upload_bytes) for p in policies)),
        row("devices' training time", *(time_words(p.work.spent_ms) for p in policies)),
        Row("wasted", tuple(_wasted(p, *p.work.wasted_ms) for p in policies), least_waste),
        *(row(cause, *(_wasted(p, cause) for p in policies), detail=True) for cause in causes),
        _compared("devices ever heard", heard, share_words, most=True),
        _compared("Gini coefficient", gini, _index),
        _compared("Jain's index", jain, _index, most=True),
    ]


def best(
    values: Sequence[float | None], cells: Sequence[str], *, most: bool = False
) -> frozenset[int]:
    """Indices of the least values, or the most, and of those that look alike in their cells; none
    if all do."""
    known = [value for value in values if value is not None]
    if len(set(cells)) < 2 or not known:
        return frozenset()
    wanted = cells[values.index(max(known) if most else min(known))]
    return frozenset(index for index, cell in enumerate(cells) if cell == wanted)


def _compared(
    label: str, values: Sequence[float | None], words: Callable[[float], str], *, most: bool = False
) -> Row:
    """A row whose best values are known; None is none."""
    cells = tuple(_NONE if value is None else words(value) for value in values)
    return Row(label, cells, best(values, cells, most=most))


def _learned_rows(summary: Summary) -> list[Row]:
    policies, target = summary.policies, summary.target_accuracy
    rows = []
    if target is not None:
        reached = [p.target_reached for p in policies]
        goal = share_words(target)
        times = [r.virtual_ms if r else None for r in reached]
        rounds = [r.rounds if r else None for r in reached]
        sizes = [r.bytes if r else None for r in reached]
        rows = [
            _compared(f"time to {goal}", times, time_words),
            _compared(f"rounds to {goal}", rounds, "{:.1f}".format),
            _compared(f"bytes to {goal}", sizes, bytes_words),
        ]
    final = [p.final_accuracy for p in policies]
    greatest = [p.best_accuracy for p in policies]
    return [
        *rows,
        _compared("final accuracy", final, "{:.2%}".format, most=True),
        _compared("best accuracy", greatest, "{:.2%}".format, most=True),
    ]


def _loss_rows(summary: Summary) -> list[Row]:
    """All that is known of a model whose bundle measures no accuracy."""
    losses = [p.final_loss for p in summary.policies]
    if all(loss is None for loss in losses):
        return []
    return [_compared("final loss", losses, "{:.4g}".format)]


def _index(value: float) -> str:
    return f"{value:.3f}"


def _wasted(policy: PolicyFigures, *causes: str) -> str:
    """Share of the time spent, and the time."""
    wasted_ms = sum(policy.work.wasted_ms.get(cause, 0) for cause in causes)
    if not wasted_ms:
        return "0" if policy.work.spent_ms else _NONE
    share = share_words(wasted_ms / policy.work.spent_ms).replace("under ", "<")
    return f"{share}, {time_words(wasted_ms)}"


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Who is best at what, the table, the verdicts; as many policies side by side as fit."""
    console = console or Console()
    rows = rows_of(summary)
    first_width = max(len(row.label) for row in rows) + 4
    names = [policy.name for policy in summary.policies]
    widest = [
        max(len(names[i]), *(len(row.cells[i]) for row in rows), _COLUMN_WIDTH) + 3
        for i in range(len(names))
    ]
    first = headline(summary)
    if first:
        console.print(Text(first, style="bold"))
    begin = 0
    while begin < len(names):
        end, room = begin, console.width - first_width
        while end < len(names) and (end == begin or room >= widest[end]):
            room -= widest[end]
            end += 1
        console.print(_table(summary, rows, begin, end))
        begin = end
    for policy in summary.policies:
        text = Text(policy.name, style="bold")
        console.print(text.append(f": {policy.verdict}", style="not bold"))


def _table(summary: Summary, rows: list[Row], begin: int, end: int) -> Table:
    # Names are a file's: they are text, never markup.
    title = f"{summary.scenario}: {summary.devices:,} devices, seed {summary.seed}"
    table = Table(
        title=Text(title), title_justify="left", box=None, padding=(0, 1), header_style="bold"
    )
    table.add_column("")
    for policy in summary.policies[begin:end]:
        table.add_column(Text(policy.name), justify="right", overflow="fold")
    for row in rows:
        style = "dim" if row.detail else ""
        label = Text(f"  {row.label}" if row.detail else row.label)
        cells = [
            Text(cell, style="bold" if index in row.best else "")
            for index, cell in enumerate(row.cells)
        ]
        table.add_row(label, *cells[begin:end], style=style)
    return table
