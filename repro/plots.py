"""The document's plots, as SVG text: the same bytes from the same results."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl

from repro.figure_one import Figure, Side
from repro.report import SECTIONS, plot_name, run_rows_of
from repro.rows import Column, Row
from repro.standing import Records, standing
from simulator.report.curves import running_best

mpl.use("svg")
from matplotlib import pyplot as plt

_STYLE: Any = {
    "svg.hashsalt": "fedtide",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
_COLUMNS: tuple[Column, Column] = ("iid", "non-iid")


def curve_plots(records: Records) -> dict[str, str]:
    """By name: for each section that was run at all, the best run of each of its rows."""
    chosen = {section: run_rows_of(section, records) for section in SECTIONS}
    return {plot_name(section): _curves(rows, records) for section, rows in chosen.items() if rows}


def _curves(rows: list[Row], records: Records) -> str:
    columns = [column for column in _COLUMNS if any(row.column == column for row in rows)]
    with plt.rc_context(_STYLE):
        figure, all_axes = plt.subplots(
            1, len(columns), figsize=(4.6 * len(columns), 3.6), sharey=True, squeeze=False
        )
        for column, axes in zip(columns, all_axes[0], strict=True):
            _column(axes, [row for row in rows if row.column == column], records)
            axes.set(title=column if column == "iid" else _name(rows), xlabel="round")
        all_axes[0][0].set_ylabel("best accuracy so far, %")
        return _svg(figure)


def _name(rows: list[Row]) -> str:
    natural = any(row.experiment.partition == "natural" for row in rows)
    return "by role" if natural else "non-iid"


def _column(axes: Any, rows: list[Row], records: Records) -> None:
    lowest = 100.0
    seen: set[str] = set()
    for number, row in enumerate(rows):
        colour = f"C{number % 10}"
        target = 100 * row.target
        axes.axhline(target, color="#888888", linewidth=0.8)
        axes.plot(row.paper_rounds, target, marker="o", markerfacecolor="none", color=colour)
        if row.name in seen:
            continue
        seen.add(row.name)
        rounds, accuracies = _best_curve(row, records)
        axes.plot(rounds, accuracies, color=colour, linewidth=1.6, label=row.label)
        lowest = min(lowest, target)
    axes.set_xscale("log")
    axes.set_ylim(lowest - (6 if lowest > 90 else lowest / 2), None)
    axes.legend(fontsize=7, loc="lower right", title="circles: the paper", title_fontsize=7)


def _best_curve(row: Row, records: Records) -> tuple[list[float], list[float]]:
    here = standing(row, records)
    assert here is not None
    trials = records[row.name].trials(row.target, row.experiment.rounds_max, 0)
    trial = trials[here.choice.learning_rate or here.tried[0]]
    points = [(number, 100 * best) for number, best in running_best(trial.curve) if number]
    return [number for number, _ in points], [accuracy for _, accuracy in points]


def figure_plot(figure: Figure) -> str:
    """Both halves of Figure 1."""
    with plt.rc_context(_STYLE):
        picture, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.6))
        _side(left, figure.independent, "independent initialisations")
        _side(right, figure.shared, "shared initialisation")
        left.set_ylabel("loss on all training data")
        return _svg(picture)


def _side(axes: Any, side: Side, title: str) -> None:
    axes.plot(side.thetas, side.losses, color="#2a7f5f", linewidth=1.8)
    parents = (side.second_parent, side.first_parent)
    axes.plot((0, 1), parents, "s", color="#444444", label="parents")
    axes.plot(0.5, side.average, "o", color="#c0392b", label="average")
    axes.set(title=title, xlabel="θ, in θ w + (1 - θ) w'")
    axes.legend()


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.tight_layout()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "fedtide"})
    plt.close(figure)
    # matplotlib leaves blanks at the ends of lines.
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
