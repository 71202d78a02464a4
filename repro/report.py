"""Tables of docs/fedavg-paper.md, and of `--list`: the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedtide.errors import ConfigError
from repro.cost import hours_expected
from repro.figure_one import Figure, Side
from repro.rows import ROWS, Row
from repro.same_bits import OverMqtt
from repro.standing import NEAR, Records, Standing, our_factor, paper_factor, standing

SECTIONS: dict[str, tuple[str, str]] = {
    "table 1, 2NN": ("1", "2nn"),
    "table 1, CNN": ("1", "cnn"),
    "table 2, CNN": ("2", "cnn"),
    "table 2, LSTM": ("2", "lstm"),
    "table 3": ("3", "cifar"),
    "table 4": ("4", "2nn"),
    "words": ("words", "words"),
}
"""Blocks of the document: table, and how its lines begin."""
_NONE = "—"
_HEADER = (
    "setting", "data", "u", "paper", "ours", "ours / paper", "learning rate (tried)", "hours",
)  # fmt: skip

_U = _HEADER.index("u")


def rows_of(section: str) -> list[Row]:
    """In the paper's order."""
    table, start = SECTIONS[section]
    return [row for row in ROWS if row.table == table and row.line.startswith(start)]


def plot_names(records: Records) -> list[str]:
    """Of the pictures of curves: a section that was run at all has one."""
    return [plot_name(section) for section in SECTIONS if run_rows_of(section, records)]


def plot_name(section: str) -> str:
    """Of its file."""
    return section.replace(", ", "-").replace(" ", "-").lower()


def run_rows_of(section: str, records: Records) -> list[Row]:
    """Those that were run at all."""
    return [row for row in rows_of(section) if standing(row, records) is not None]


def blocks(
    records: Records,
    figure: Figure | None,
    plots: Sequence[str],
    over_mqtt: OverMqtt | None = None,
) -> dict[str, str]:
    """The text of every generated part of the document; `plots`: names of its pictures."""
    texts = {name: _section(name, records) for name in SECTIONS}
    texts["figure 1"] = "Not run." if figure is None else _figure(figure)
    texts["over mqtt"] = "Not run." if over_mqtt is None else _over_mqtt(over_mqtt)
    texts["runs"] = _runs(records)
    texts["not run"] = _not_run(records)
    texts["plots"] = "\n\n".join(f"![{name}](fedavg/{name}.svg)" for name in plots) or "None yet."
    return texts


def rendered(document: str, texts: dict[str, str]) -> str:
    """The document with its generated parts replaced: each stands between two comments.

    Raises:
        ConfigError: a part has no place in it.
    """
    for name, text in texts.items():
        start, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, found, rest = document.partition(start)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ConfigError(
                f"the document has no place for {name!r}", hint=f"lines {start} and {end}"
            )
        document = f"{before}{start}\n{text}\n{end}{after}"
    return document


def listing(rows: Iterable[Row], records: Records) -> list[str]:
    """Lines for a terminal: every row, the paper's rounds, ours, and what it would cost."""
    cells = [("row", "setting", "data", "paper", "ours", "core-hours")]
    table = ""
    for row in rows:
        if row.table != table:
            table = row.table
            title = f"Table {table}" if table.isdigit() else "Large-scale experiment (section 3)"
            from_memory = ": the paper's numbers from memory, unchecked" if row.remembered else ""
            cells.append((f"-- {title}{from_memory}", "", "", "", "", ""))
        hours = hours_expected(row)
        expected = "" if hours is None else f"{hours:.2g}"
        ours = _ours(row, records) if standing(row, records) else "not run"
        cells.append((row.name, row.label, row.column, _paper(row), ours, expected))
    plain = [line for line in cells if not line[0].startswith("--")]
    widths = [max(len(line[column]) for line in plain) for column in range(6)]
    return [
        line[0]
        if line[0].startswith("--")
        else "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _section(section: str, records: Records) -> str:
    rows = rows_of(section)
    lines = [_HEADER, *(_line(row, records) for row in rows)]
    if not any(row.paper_updates for row in rows):
        lines = [tuple(cell for at, cell in enumerate(line) if at != _U) for line in lines]
    table = _table(lines[0], lines[1:])
    data = data_of(rows, records)
    return f"{table}\n\nData: {'; '.join(data)}." if data else table


def data_of(rows: Iterable[Row], records: Records) -> list[str]:
    """What their runs trained on, as far as it was noted."""
    names = dict.fromkeys(row.name for row in rows if row.name in records)
    return sorted({run.data for name in names for run in records[name].runs if run.data})


def _line(row: Row, records: Records) -> tuple[str, ...]:
    here = standing(row, records)
    updates = f"{row.paper_updates:g}" if row.paper_updates else _NONE
    start = (row.label, _column(row), updates, _paper(row))
    if here is None:
        return (*start, "not run", _NONE, _NONE, _NONE)
    ratio = _NONE if here.rounds is None else _ratio(here.rounds / row.paper_rounds)
    return (*start, _ours(row, records), ratio, _rates(here), _hours(here.training_s))


def _column(row: Row) -> str:
    return "by role" if row.experiment.partition == "natural" else row.column


def _paper(row: Row) -> str:
    return f"{row.paper_rounds:g}{_times(paper_factor(row))}{' (unchecked)' * row.remembered}"


def _ours(row: Row, records: Records) -> str:
    here = standing(row, records)
    assert here is not None
    so_far = "" if here.complete else ", so far"
    if here.rounds is None:
        return f"> {here.last_round} ({100 * here.best:.2f}%{so_far})"
    factor = our_factor(row, records)
    times = "" if factor is None else _times(factor[0], at_least=factor[1])
    return f"{here.rounds:.1f}{times}{so_far}"


def _times(factor: float | None, *, at_least: bool = False) -> str:
    return "" if factor is None else f" ({'> ' * at_least}{factor:.1f}x)"


def _ratio(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio <= NEAR else f"{ratio:.2f}"


def _rates(here: Standing) -> str:
    tried = here.tried
    span = f"{tried[0]:g}" if len(tried) == 1 else f"{tried[0]:g} to {tried[-1]:g}, {len(tried)}"
    if here.choice.learning_rate is None:
        return f"all diverged ({span})"
    edge = "; at the edge" if here.complete and not here.choice.inside else ""
    return f"{here.choice.learning_rate:g} ({span}{edge})"


def _figure(figure: Figure) -> str:
    lines = [
        (
            name,
            *(f"{loss:.4f}" for loss in (side.first_parent, side.second_parent, side.average)),
            f"{min(side.losses):.4f} at {_theta(side)}",
        )
        for name, side in (("independent", figure.independent), ("shared", figure.shared))
    ]
    header = ("initialisation", "first parent", "second parent", "average", "least of the sweep")
    picture = "![Figure 1](fedavg/figure-1.svg)"
    return f"`{figure.verdict()}`\n\n{_table(header, lines)}\n\n{picture}"


def _theta(side: Side) -> str:
    """Where the sweep is lowest."""
    theta = side.thetas[side.losses.index(min(side.losses))]
    return f"{round(theta, 2) + 0.0:.2f}"  # no -0.00


def _over_mqtt(run: OverMqtt) -> str:
    setting, last = run.experiment, run.curve[-1]
    target = f"{100 * setting.target:g}%"
    reached = (
        f"not at {target} yet" if run.rounds is None else f"{target} in {run.rounds:.1f} rounds"
    )
    lines = [
        ("learning rate, seed", f"{setting.learning_rate:g}, {setting.seed}"),
        ("client processes", f"{setting.devices}"),
        ("to the target", f"{reached}; round {last[0]}: {100 * last[1]:.2f}%"),
        ("last model", f"`{run.digest[:12]}`"),
    ]
    if run.round_s is not None:
        lines.append(("a round", f"{run.round_s:g} s (median)"))
    if run.clients_bytes is not None:
        memory = f"at most {run.clients_bytes / 1e6:,.0f} MB, shared pages counted once"
        lines.append(("memory of all clients", memory))
    lines.append(("with", ", ".join(f"{name} {what}" for name, what in run.versions.items())))
    return f"`{run.name}: {run.comparison.verdict()}`\n\n{_table(('', ''), lines)}"


def _runs(records: Records) -> str:
    header = (
        "run", "learning rate", "seed", "to the target", "rounds run", "best", "hours",
        "last model",
    )  # fmt: skip
    lines = []
    for name in sorted(records):
        for run in records[name].runs:
            trial = run.trial(run.experiment.target, run.experiment.rounds_max)
            lines.append(
                (
                    name,
                    f"{run.experiment.learning_rate:g}",
                    f"{run.experiment.seed}",
                    "diverged" if trial.diverged else _rounds(trial.rounds),
                    f"{run.last_round}",
                    f"{100 * trial.best():.2f}%",
                    _hours(run.training_s),
                    f"`{run.digest[:12]}`",
                )
            )
    return _table(header, lines) if lines else "None yet."


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _rounds(rounds: float | None) -> str:
    return _NONE if rounds is None else f"{rounds:.1f}"


def _not_run(records: Records) -> str:
    missing: dict[str, list[str]] = {}
    for section in SECTIONS:
        for row in rows_of(section):
            if standing(row, records) is None:
                missing.setdefault(section, []).append(f"{row.label} {_column(row)}")
    if not missing:
        return "Everything was run."
    return "\n".join(f"- {section}: {'; '.join(rows)}" for section, rows in missing.items())


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
