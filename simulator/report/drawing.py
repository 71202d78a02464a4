"""Figures as SVG text, in one quiet style: dark on light, readable without colour."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from simulator.report.words import time_words

TICKS_MOST = 7
"""Of a logarithmic axis: more would overlap."""

GREEN, RED, YELLOW, PURPLE, GREY = "#2a7f5f", "#c0392b", "#e0a030", "#7b52ab", "#c9c9c9"
BLUE, DARK_GREY = "#2b6cb0", "#8a8a8a"


def axes_of(height: float, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure 9 inches wide and its axes; several columns: an array of them."""
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            # Names inside the SVG follow from what is drawn: the same run, the same bytes.
            "svg.hashsalt": "fedtide",
            "font.size": 9,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            # A label is text: a dollar sign in a name begins no formula.
            "text.parse_math": False,
        }
    )
    figure = Figure(figsize=(9, height), dpi=72)
    FigureCanvasSVG(figure)
    all_axes = figure.subplots(1, columns, **options)
    for axes in [all_axes] if columns == 1 else all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(visible=True, axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    return figure, all_axes


def logarithmic_time(axes: Any, unit_ms: float, from_ms: float) -> None:
    """A logarithmic x-axis of time in `unit_ms`, from `from_ms` on; every tick says its unit."""
    axes.set_xscale("log")
    axes.set_xlim(left=from_ms / unit_ms)
    ticks = time_ticks_ms(from_ms, axes.get_xlim()[1] * unit_ms)
    axes.xaxis.set_major_locator(FixedLocator([tick / unit_ms for tick in ticks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: time_words(value * unit_ms)))
    axes.xaxis.set_minor_locator(NullLocator())


def time_ticks_ms(from_ms: float, until_ms: float) -> list[float]:
    """Round times within an interval, as even on a logarithmic axis as seconds, minutes and hours
    allow; at most `TICKS_MOST`."""
    ticks: list[float] = []
    for steps in ((1, 2, 5, 10, 20, 30), (1, 3, 10, 30), (1, 10), (1,)):
        small = [step * 10.0**power for power in range(3) for step in steps if step < 10]
        clock = [step * unit for unit in (1_000, 60_000) for step in steps]
        hours = [
            step * 3_600_000 * 10.0**power for power in range(5) for step in steps if step < 10
        ]
        ticks = [tick for tick in (*small, *clock, *hours) if from_ms <= tick <= until_ms]
        if len(ticks) <= TICKS_MOST:
            break
    return ticks[:: max(1, -(-len(ticks) // TICKS_MOST))]


def svg(figure: Any) -> str:
    """Inline SVG, without the XML prologue and without a date."""
    # As `layout="constrained"`, which would draw everything once more, into nothing.
    ConstrainedLayoutEngine().execute(figure)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
