"""Plots of one policy: its devices over time, and which profiles dropped out or were late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.collections import PolyCollection

from simulator.report.comparison import bar_row, short
from simulator.report.drawing import BLUE, DARK_GREY, GREEN, GREY, PURPLE, RED, YELLOW, axes_of, svg
from simulator.report.summary import HOUR_MS, PolicyFigures
from simulator.report.tasks import Task
from simulator.report.timeline import Timeline
from simulator.report.words import time_unit

_SPANS = {
    "download": (BLUE, "////"),
    "training": (GREEN, ""),
    "upload": (YELLOW, "||||"),
}
_MARKS = {
    "counted": ("|", "#222222", "counted"),
    "late": ("o", "#ffffff", "late"),
    "not needed": ("D", "#ffffff", "not needed"),
    "declined": ("v", "#ffffff", "declined"),
    "rejected": ("P", PURPLE, "rejected"),
    "abandoned": ("s", DARK_GREY, "abandoned"),
    "dropped": ("X", RED, "dropped"),
}
_DROP_PHASES = {
    "before download": (GREY, "", "before download"),
    "training": (GREEN, "//", "in training"),
    "before upload": (PURPLE, "xx", "before upload"),
    "upload": (YELLOW, "||", "during upload"),
}
_LATE_PHASES = {
    "download": (BLUE, "//", "downloading"),
    "training": (GREEN, "", "training"),
    "upload": (YELLOW, "||", "uploading"),
    "away": (GREY, "\\\\", "away or idle"),
}


def timeline_plot(scene: Timeline, profiles: Sequence[str]) -> str:
    """Devices by virtual time, with what they were at and what became of it."""
    figure, axes = axes_of(1.3 + 0.2 * len(scene.devices))
    unit_ms, unit = time_unit(scene.until_ms - scene.from_ms)
    row_of = {device: row for row, device in enumerate(scene.devices)}

    def x(at_ms: float) -> float:
        return (min(max(at_ms, scene.from_ms), scene.until_ms) - scene.from_ms) / unit_ms

    # Thin, so that what a device did before it went stays in sight.
    off = [(row_of[device], x(begin), x(end)) for device, begin, end in scene.off]
    _bars(axes, off, 0.11, "off", facecolor=GREY)
    for phase, (colour, hatch) in _SPANS.items():
        spans = [
            (row_of[task.device], x(begin), x(end))
            for task in scene.tasks
            for name, begin, end in task.spans
            if name == phase and begin < scene.until_ms and end > scene.from_ms
        ]
        _bars(axes, spans, 0.31, phase, facecolor=colour, hatch=hatch, edgecolor="#333333")
    moments = _moments(scene.tasks)
    for name, (marker, colour, label) in _MARKS.items():
        points = [
            (x(at_ms), row_of[device])
            for at_ms, device in moments.get(name, ())
            if scene.from_ms <= at_ms <= scene.until_ms
        ]
        _mark(axes, points, marker, colour, label)
    for _, closed_ms in scene.closed:
        axes.axvline(
            x(closed_ms), color="#222222", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.5
        )
    names = [f"{short(profiles[device])}  {device:05}" for device in scene.devices]
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, x(scene.until_ms))
    axes.grid(visible=False)
    axes.set_xlabel(
        f"{unit} since round {scene.first_round} opened, {scene.from_ms / HOUR_MS:.3g} h after the "
        "start; dashed: a round ends"
    )
    axes.set_title(f"Rounds {scene.first_round} to {scene.last_round}", loc="left")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=9,
        frameon=False,
        columnspacing=1.2,
        handlelength=1.6,
    )
    return svg(figure)


def _bars(
    axes: Any, spans: Sequence[tuple[int, float, float]], half: float, label: str, **look: Any
) -> None:
    """Row, from, until: horizontal bars as one object, which draws faster than many."""
    if spans:
        corners = [
            [(begin, row - half), (end, row - half), (end, row + half), (begin, row + half)]
            for row, begin, end in spans
        ]
        axes.add_collection(PolyCollection(corners, label=label, linewidth=0.5, **look))


def _moments(tasks: Sequence[Task]) -> dict[str, list[tuple[int, int]]]:
    """When which device met with a fate."""
    moments: dict[str, list[tuple[int, int]]] = {}
    for task in tasks:
        drops = [(at_ms, task.device) for at_ms, _ in task.drops]
        moments.setdefault("dropped", []).extend(drops)
        at_ms, name = task.ended_ms, str(task.fate)
        if name == "counted" and task.accepted_ms is not None:
            at_ms = task.accepted_ms  # it is in a model once its round closes
        if name != "dropped":  # marked where it dropped, also if it came back too late
            moments.setdefault(name, []).append((at_ms, task.device))
    return moments


def _mark(
    axes: Any, points: Sequence[tuple[float, float]], marker: str, colour: str, label: str
) -> None:
    if not points:
        return
    # Taller than the bar that it ends.
    look = {"linewidths": 2.2} if marker == "|" else {"edgecolors": "#222222", "linewidths": 0.9}
    axes.scatter(
        [at for at, _ in points],
        [row for _, row in points],
        marker=marker,
        s=190 if marker == "|" else 34,
        color=colour,
        label=label,
        zorder=3,
        clip_on=False,
        **look,
    )


def profiles_plot(policy: PolicyFigures) -> str | None:
    """Who dropped out, who was late, by profile and phase: shares of the profile's tasks. None:
    nobody."""
    names = [name for name, figures in policy.profiles.items() if figures.tasks]
    if not any(any((*p.dropped.values(), *p.late.values())) for p in policy.profiles.values()):
        return None
    figure, both = axes_of(1.6 + 0.3 * len(names), 2, sharey=True)
    kinds = (
        ("Dropouts, by phase", _DROP_PHASES, "dropped"),
        ("Late, by what the device was at", _LATE_PHASES, "late"),
    )
    for axes, (title, looks, attribute) in zip(both, kinds, strict=True):
        begins = [0.0] * len(names)
        for phase, (colour, hatch, label) in looks.items():
            widths = [
                100
                * getattr(policy.profiles[n], attribute).get(phase, 0)
                / policy.profiles[n].tasks
                for n in names
            ]
            bar_row(axes, range(len(names)), widths, begins, colour, hatch, label)
            begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
        axes.set_title(title, loc="left")
        axes.set(xlabel="% of the profile's tasks", ylim=(len(names) - 0.5, -0.5))
        axes.set_xlim(0, max(5.0, 1.05 * max(begins)))
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color="#eeeeee")
        if not any(begins):
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color="#555555")
    for axes, place in zip(both, ("outside lower left", "outside lower right"), strict=True):
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc=place,
            ncols=4,
            frameon=False,
            fontsize=7.5,
            columnspacing=1.0,
            handlelength=1.4,
        )
    both[0].set_yticks(range(len(names)), [short(name) for name in names])
    return svg(figure)
