"""Policy against policy as rows of text: for a terminal and for the page."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.report.summary import PolicyFigures, Summary
from simulator.report.words import bytes_words, number_words, share_words, time_words

_NONE = "-"
_COLUMN_WIDTH = 14
_MAIN_CAUSES = {"dropped": "dropped", "late": "late", "not needed": "over-selected"}


class Row(NamedTuple):
    """A line of the table."""

    label: str
    cells: tuple[str, ...]
    """One a policy."""
    detail: bool = False
    """Part of the row above."""


def rows_of(summary: Summary) -> list[Row]:
    """Everything that is compared, as words; one cell a policy."""
    policies = summary.policies

    def row(label: str, *cells: str, detail: bool = False) -> Row:
        return Row(label, cells, detail)

    rows = _learned_rows(summary) if summary.learned else []
    rows += [
        row("rounds done, of", *(f"{p.rounds_done:,} of {p.rounds_asked:,}" for p in policies)),
        row("rounds abandoned", *(f"{p.rounds_abandoned:,}" for p in policies)),
        row("virtual time", *(time_words(p.virtual_ms) for p in policies)),
        row(
            "before the first round",
            *(time_words(p.first_round_ms) for p in policies),
            detail=True,
        ),
        row("rounds an hour", *(number_words(p.rounds_per_hour) for p in policies)),
        row("counted updates an hour", *(number_words(p.updates_per_hour) for p in policies)),
        row("downloaded", *(bytes_words(p.download_bytes) for p in policies)),
        row("uploaded", *(bytes_words(p.upload_bytes) for p in policies)),
        row("devices' training time", *(time_words(p.work.spent_ms) for p in policies)),
        row("wasted", *(_wasted(p, *p.work.wasted_ms) for p in policies)),
    ]
    rows += [
        row(label, *(_wasted(p, cause) for p in policies), detail=True)
        for cause, label in _MAIN_CAUSES.items()
    ]
    other = [cause for cause in policies[0].work.wasted_ms if cause not in _MAIN_CAUSES]
    rows += [
        row("otherwise", *(_wasted(p, *other) for p in policies), detail=True),
        row("devices ever heard", *(share_words(p.participation.counted_share) for p in policies)),
        row("Gini coefficient", *(_index(p.participation.gini) for p in policies)),
        row("Jain's index", *(_index(p.participation.jain) for p in policies)),
    ]
    return rows


def _learned_rows(summary: Summary) -> list[Row]:
    policies, target = summary.policies, summary.target_accuracy
    rows = []
    if target is not None:
        reached = [p.target_reached for p in policies]
        goal = share_words(target)
        rows = [
            Row(
                f"time to {goal}", tuple(time_words(r.virtual_ms) if r else _NONE for r in reached)
            ),
            Row(f"rounds to {goal}", tuple(f"{r.rounds:.1f}" if r else _NONE for r in reached)),
            Row(f"bytes to {goal}", tuple(bytes_words(r.bytes) if r else _NONE for r in reached)),
        ]
    return [
        *rows,
        Row("final accuracy", tuple(_share(p.final_accuracy) for p in policies)),
        Row("best accuracy", tuple(_share(p.best_accuracy) for p in policies)),
    ]


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2%}"


def _index(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _wasted(policy: PolicyFigures, *causes: str) -> str:
    """Share of the time spent, and the time."""
    wasted_ms = sum(policy.work.wasted_ms.get(cause, 0) for cause in causes)
    if not wasted_ms:
        return "0" if policy.work.spent_ms else _NONE
    return f"{share_words(wasted_ms / policy.work.spent_ms)}, {time_words(wasted_ms)}"


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """The table and the verdicts; as many policies side by side as fit."""
    console = console or Console()
    rows = rows_of(summary)
    first_width = max(len(row.label) for row in rows) + 4
    names = [policy.name for policy in summary.policies]
    widest = [
        max(len(names[i]), *(len(row.cells[i]) for row in rows), _COLUMN_WIDTH) + 3
        for i in range(len(names))
    ]
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
        table.add_row(label, *map(Text, row.cells[begin:end]), style=style)
    return table
