"""One self-contained HTML page about a run."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from demo.outcome import ModelRecord, Outcome, RoundRecord
from demo.plots import accuracy_plot, bytes_plot, loss_plot, timeline_plot
from demo.scene import Fate, Scene
from simulator.report.templates import templates_in


def write_report(
    path: Path,
    outcome: Outcome,
    records: list[RoundRecord],
    models: list[ModelRecord],
    table: dict[str, list[Fate]],
    scene: Scene,
) -> None:
    """Write the page; no scripts, nothing loaded from elsewhere."""
    environment = templates_in(Path(__file__).parent)
    plots = {
        "accuracy": accuracy_plot(outcome),
        "timeline": timeline_plot(records, table),
        "loss": loss_plot(models, len(records)),
        "bytes": bytes_plot(records),
    }
    page = environment.get_template("report.html").render(
        outcome=outcome,
        failure=outcome.failure(),
        abandoned=[record for record in records if record.abandoned],
        quorum=scene.quorum,
        judges=scene.answers_count,
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704 - our own SVG
    )
    path.write_text(page, encoding="utf-8")
