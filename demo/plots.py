"""The report's plots, as SVG text. One quiet style, readable without colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from demo.scene import MEANING, Fate
from simulator.report.drawing import DARK_GREY, GREEN, GREY, PURPLE, RED, YELLOW, axes_of, svg

if TYPE_CHECKING:
    from demo.outcome import ModelRecord, Outcome, RoundRecord

from matplotlib.ticker import MaxNLocator

_FATES = {
    Fate.COUNTED: ("s", GREEN),
    Fate.KILLED: ("X", RED),
    Fate.LATE: ("o", YELLOW),
    Fate.OFFLINE: ("v", PURPLE),
    Fate.ABANDONED: ("D", DARK_GREY),
    Fate.ABSENT: (".", GREY),
}


def accuracy_plot(outcome: Outcome) -> str:
    """Accuracy of every global model, between central training and the best device alone."""
    figure, axes = axes_of(3.4)
    values = [100 * value for value in outcome.accuracy_by_round]
    axes.plot(range(len(values)), values, color=GREEN, linewidth=2.2)
    for value, text, style in (
        (outcome.central_accuracy, "all data in one place", "--"),
        (outcome.best_single_accuracy, "best device alone", ":"),
    ):
        axes.axhline(100 * value, color="#444444", linestyle=style, linewidth=1)
        beside = axes.get_yaxis_transform()
        axes.text(1.01, 100 * value, text, transform=beside, va="center", color="#444444")
    axes.set(ylabel="accuracy, % of the test set", ylim=(0, 101))
    _round_axis(axes, len(values) - 1)
    return svg(figure)


def loss_plot(models: list[ModelRecord], rounds_count: int) -> str:
    """Loss of every global model on the test set."""
    figure, axes = axes_of(2.4)
    made = {model.round_id: model.loss for model in models if model.loss is not None}
    # An abandoned round leaves the model, and its loss, as they were.
    rounds = [x for x in range(rounds_count + 1) if made and x >= min(made)]
    held = [made[max(y for y in made if y <= x)] for x in rounds]
    axes.plot(rounds, held, color=GREEN, linewidth=2)
    axes.set(ylabel="cross-entropy", ylim=(0, None))
    _round_axis(axes, rounds_count)
    return svg(figure)


def bytes_plot(records: list[RoundRecord]) -> str:
    """What the counted updates of each round weigh."""
    figure, axes = axes_of(2.4)
    axes.bar(
        [record.round_id for record in records],
        [record.upload_bytes / 1e6 for record in records],
        color=GREEN,
    )
    axes.set(ylabel="counted updates, MB")
    _round_axis(axes, len(records))
    return svg(figure)


def timeline_plot(records: list[RoundRecord], table: dict[str, list[Fate]]) -> str:
    """Who took part when: devices by rounds."""
    figure, axes = axes_of(3.8)
    rounds = [record.round_id for record in records]
    names = list(table)
    for fate, (marker, colour) in _FATES.items():
        points = [
            (rounds[column], row)
            for row, name in enumerate(names)
            for column, actual in enumerate(table[name])
            if actual is fate
        ]
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            marker=marker,
            s=34,
            color=colour,
            label=MEANING[fate],
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _round_axis(axes, len(records))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(_FATES), frameon=False)
    return svg(figure)


def _round_axis(axes: Any, rounds_count: int) -> None:
    """The same for every plot; round 0 is the model that all began with."""
    axes.set(xlabel="round", xlim=(-0.8, rounds_count + 0.8))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
