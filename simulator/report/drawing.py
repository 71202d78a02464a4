"""Figures as SVG text, in one quiet style: dark on light, readable without colour."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
    figure, all_axes = plt.subplots(
        1, columns, figsize=(9, height), layout="constrained", **options
    )
    for axes in [all_axes] if columns == 1 else all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(visible=True, axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    return figure, all_axes


def logarithmic(axes: Any) -> None:
    """An x-axis whose ticks are plain numbers."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high < 300 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def svg(figure: Any) -> str:
    """Inline SVG, without the XML prologue and without a date."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]
