"""Plots of policy against policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from simulator.report.drawing import (
    BLUE,
    DARK_GREY,
    GREEN,
    GREY,
    PURPLE,
    RED,
    YELLOW,
    axes_of,
    logarithmic_time,
    svg,
)
from simulator.report.figures import best_so_far
from simulator.report.summary import PolicyFigures, Summary
from simulator.report.words import bytes_unit, share_words, time_unit

POINTS_MOST = 400
"""Of a curve: an eye does not see more."""
LABEL_MOST = 26
# Okabe and Ito's colours without their yellow, which is too light on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#222222", "#cc79a7", "#56b4e9", "#a07000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_CAUSES = {
    "dropped": (RED, "//", "dropped"),
    "late": (YELLOW, "||", "late"),
    "not needed": (BLUE, "\\\\", "not needed"),
    "declined": (GREEN, "oo", "declined"),
    "rejected": (PURPLE, "xx", "rejected"),
    "abandoned": (DARK_GREY, "++", "abandoned"),
    "unfinished": (GREY, "", "unfinished"),
    "repeated": ("#f4d9a8", "--", "repeated"),
}
_WAITS = {
    "download": (BLUE, "//", "its download"),
    "training": (GREEN, "", "its training"),
    "upload": (YELLOW, "||", "its upload"),
    "away": (GREY, "\\\\", "it, while away or idle"),
    "others": ("#ffffff", "xx", "others, who did not count"),
}


class Style(NamedTuple):
    """Of a policy's lines: colour, dashes and marker differ."""

    colour: str
    line: str
    marker: str


def style_of(index: int) -> Style:
    """Of policy number `index`."""
    return Style(
        _COLOURS[index % len(_COLOURS)],
        _LINES[index % len(_LINES)],
        _MARKERS[index % len(_MARKERS)],
    )


def short(name: str) -> str:
    """A name that fits beside a plot; what differs is often at its end."""
    if len(name) <= LABEL_MOST:
        return name
    return f"{name[: LABEL_MOST // 2 - 1]}…{name[-LABEL_MOST // 2 :]}"


def progress_plot(summary: Summary) -> str | None:
    """Accuracy, or counted updates where nothing was learned, over time and over bytes."""
    curves = [_curve(policy, learned=summary.learned) for policy in summary.policies]
    if not any(curves):
        return None
    hour_ms, hour = time_unit(max(curve[-1][0] for curve in curves if curve))
    giga, gigabytes = bytes_unit(max(curve[-1][1] for curve in curves if curve))
    figure, (left, right) = axes_of(3.8 + 0.22 * ((len(curves) - 1) // 4), 2, sharey=True)
    for index, (policy, curve) in enumerate(zip(summary.policies, curves, strict=True)):
        style = style_of(index)
        for axes, column, unit in ((left, 0, hour_ms), (right, 1, giga)):
            axes.plot(
                [point[column] / unit for point in curve],
                [point[2] for point in curve],
                color=style.colour,
                linestyle=style.line,
                marker=style.marker,
                markevery=max(1, len(curve) // 6),
                markersize=4.5,
                linewidth=1.6,
                label=short(policy.name),
            )
    if summary.learned and summary.target_accuracy is not None:
        goal = 100 * summary.target_accuracy
        for axes in (left, right):
            axes.axhline(goal, color="#444444", linewidth=0.9, linestyle=(0, (1, 2)))
        text = f"target\n{share_words(summary.target_accuracy)}"
        right.text(1.01, goal, text, transform=right.get_yaxis_transform(), va="center")
    noun = "Best accuracy so far" if summary.learned else "Updates in models"
    left.set_title(f"{noun}, over virtual time", loc="left")
    right.set_title(f"{noun}, over bytes", loc="left")
    what = "% of the test set" if summary.learned else "updates"
    top = min(left.get_ylim()[1], 100.5) if summary.learned else None
    left.set(
        xlabel=f"{hour} since the first round opened", ylabel=what, ylim=(_floor(summary), top)
    )
    right.set(xlabel=f"downloads and uploads, {gigabytes}")
    times = [p.target_reached.virtual_ms for p in summary.policies if p.target_reached]
    if times and min(times) > 0 and max(times) / min(times) > 4:
        shown = [x for curve in curves for x, _, value in curve if x and value >= _floor(summary)]
        logarithmic_time(left, hour_ms, 0.8 * min(shown))
        left.set_xlabel("since the first round opened (logarithmic)")
    else:
        left.set_xlim(left=0)
    right.set_xlim(left=0)
    _legend(figure, left, len(curves))
    return svg(figure)


def _curve(policy: PolicyFigures, *, learned: bool) -> list[tuple[float, float, float]]:
    """Points: virtual ms since the first round opened, bytes, value."""
    if learned:
        points = [
            (policy.since_first_round_ms(point.virtual_ms), float(point.bytes), 100 * best)
            for point, best in best_so_far(policy.curve)
        ]
    else:
        points, size, count = [(0.0, 0.0, 0.0)], 0, 0
        for entry in policy.rounds:
            size += entry.download_bytes + entry.upload_bytes
            count += entry.counted
            if entry.closed_ms is not None:
                points.append((policy.since_first_round_ms(entry.closed_ms), size, float(count)))
        if len(points) == 1:
            return []
    step = max(1, -(-len(points) // POINTS_MOST))
    return points[::-1][::step][::-1]


def _floor(summary: Summary) -> float:
    """Where the y-axis begins: the climb to a high target is not squeezed into a line."""
    target = summary.target_accuracy
    if not summary.learned or target is None:
        return 0.0
    best = [100 * p.best_accuracy for p in summary.policies if p.best_accuracy is not None]
    return max(0.0, min(100 - 600 * (1 - target), *(value - 5 for value in best)))


def bytes_plot(summary: Summary) -> str:
    """What all devices down- and uploaded."""
    figure, axes = axes_of(_height(summary))
    parts = {
        "down": (BLUE, "", "downloaded"),
        "up": (YELLOW, "||", "uploaded"),
    }
    giga, gigabytes = bytes_unit(max(policy.bytes for policy in summary.policies))
    values = [
        {"down": policy.download_bytes / giga, "up": policy.upload_bytes / giga}
        for policy in summary.policies
    ]
    _stacked(axes, summary.policies, values, parts)
    axes.set(xlabel=f"{gigabytes}, all devices, whole run")
    axes.set_title("Bytes carried", loc="left")
    _legend(figure, axes, 2)
    return svg(figure)


def waste_plot(summary: Summary) -> str | None:
    """What of the devices' training came to nothing, and why; None: less than an eye would see."""
    values = [
        {
            cause: 100 * wasted_ms / max(1, policy.work.spent_ms)
            for cause, wasted_ms in policy.work.wasted_ms.items()
        }
        for policy in summary.policies
    ]
    seen = {cause: look for cause, look in _CAUSES.items() if any(v[cause] >= 0.1 for v in values)}
    if not seen:
        return None
    figure, axes = axes_of(_height(summary))
    _stacked(axes, summary.policies, values, seen)
    axes.set(xlabel="% of the devices' training time")
    axes.set_xlim(0, max(10.0, 1.05 * max(sum(v.values()) for v in values)))
    axes.set_title("Training that was wasted, by cause", loc="left")
    _legend(figure, axes, len(seen))
    return svg(figure)


def rounds_plot(summary: Summary) -> str | None:
    """How long rounds took, and what they waited for."""
    durations_ms = [
        [entry.duration_ms for entry in policy.rounds if entry.duration_ms is not None]
        for policy in summary.policies
    ]
    if not any(durations_ms):
        return None
    unit_ms, unit = time_unit(max(value for values in durations_ms for value in values))
    durations = [[value / unit_ms for value in values] for values in durations_ms]
    figure, (left, right) = axes_of(_height(summary), 2, sharey=True)
    for row, lengths in enumerate(durations):
        if lengths:
            _box(left, row, lengths)
    everything = [value for values in durations for value in values if value > 0]
    box = "box: middle half, whiskers: 5% to 95%"
    if everything and max(everything) / min(everything) > 20:
        logarithmic_time(left, unit_ms, 0.8 * unit_ms * min(everything))
        left.set_xlabel(f"logarithmic; {box}")
    else:
        left.set_xlim(0, 1.05 * left.dataLim.x1)  # also where all are equal
        left.set_xlabel(f"{unit}; {box}")
    left.set_title("Lengths of rounds", loc="left")
    values = []
    for policy in summary.policies:
        sums = dict.fromkeys(_WAITS, 0.0)
        for entry in policy.rounds:
            for phase, waited_ms in entry.waited_ms.items():
                sums[phase] += waited_ms
        whole = sum(sums.values()) or 1.0
        values.append({phase: 100 * value / whole for phase, value in sums.items()})
    _stacked(right, summary.policies, values, _WAITS)
    right.set(xlabel="% of the rounds' time", xlim=(0, 100))
    right.set_title("Rounds waited for their last counted device:", loc="left")
    _legend(figure, right, len(_WAITS))
    return svg(figure)


def _box(axes: Any, row: int, values: Sequence[float]) -> None:
    """The middle half as a box, its median, and whiskers from 5% to 95%."""
    low, first, middle, third, high = np.percentile(values, (5, 25, 50, 75, 95))
    axes.hlines(row, low, high, color="#444444", linewidth=1)
    axes.barh(row, third - first, left=first, height=0.5, color="#d9e6f2", edgecolor="#444444")
    axes.vlines(middle, row - 0.25, row + 0.25, color="#222222", linewidth=2.2)


def fairness_plot(summary: Summary) -> str | None:
    """Who is heard: counted updates of a device, by profile."""
    names = sorted({name for policy in summary.policies for name in policy.profiles})
    if not any(policy.updates_counted for policy in summary.policies):
        return None
    figure, (left, right) = axes_of(1.4 + 0.32 * len(names), 2, sharey=True)
    for index, policy in enumerate(summary.policies):
        style = style_of(index)
        mean = policy.updates_counted / summary.devices or 1.0
        known = [(row, policy.profiles[n]) for row, n in enumerate(names) if n in policy.profiles]
        offset = 0.5 * ((index + 0.5) / len(summary.policies) - 0.5)
        look = {"color": style.colour, "marker": style.marker, "s": 30, "alpha": 0.9}
        ys = [row + offset for row, _ in known]
        heard = [100 * figures.counted_share for _, figures in known]
        left.scatter(heard, ys, label=short(policy.name), **look)
        right.scatter(
            [figures.counted / figures.devices / mean for _, figures in known], ys, **look
        )
    left.set_yticks(range(len(names)), [short(name) for name in names])
    left.set(xlabel="% of the profile's devices", xlim=(-3, 103), ylim=(len(names) - 0.5, -0.5))
    left.set_title("Devices ever heard", loc="left")
    right.axvline(1, color="#444444", linewidth=0.9, linestyle=(0, (1, 2)))
    right.set(xlabel="times the fleet's mean", xlim=(0, None))
    right.set_title("Counted updates of a device", loc="left")
    _legend(figure, left, len(summary.policies))
    return svg(figure)


def _height(summary: Summary) -> float:
    return 1.35 + 0.32 * len(summary.policies)


def _stacked(
    axes: Any,
    policies: Sequence[PolicyFigures],
    values: Sequence[dict[str, float]],
    looks: dict[str, tuple[str, str, str]],
) -> None:
    """A bar for each policy; `looks`: colour, hatch and label of each part."""
    rows = range(len(policies))
    begins = [0.0] * len(policies)
    for part, (colour, hatch, label) in looks.items():
        widths = [value.get(part, 0.0) for value in values]
        bar_row(axes, rows, widths, begins, colour, hatch, label)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.set_yticks(list(rows), [short(policy.name) for policy in policies])
    axes.set_ylim(len(policies) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#eeeeee")


def bar_row(
    axes: Any, rows: Any, widths: Any, begins: Any, colour: str, hatch: str, label: str | None
) -> None:
    """Horizontal bars of one look; hatches tell what colours do."""
    axes.barh(
        rows,
        widths,
        left=begins,
        height=0.62,
        color=colour,
        hatch=hatch,
        label=label,
        edgecolor="#333333",
        linewidth=0.5,
    )


def _legend(figure: Any, axes: Any, count: int) -> None:
    """Below everything, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(len(label) for label in labels)
        columns = max(1, min(count, int(130 / (longest + 9))))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


Plot = Callable[[Summary], "str | None"]
PLOTS: dict[str, Plot] = {
    "progress": progress_plot,
    "bytes": bytes_plot,
    "waste": waste_plot,
    "rounds": rounds_plot,
    "fairness": fairness_plot,
}
