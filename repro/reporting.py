"""`--list` and `--report`: results on disk to lines, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedtide.errors import ConfigError
from fedtide.files import disk_errors_of, write_atomically
from repro.cost import hours_expected
from repro.figure_one import Figure
from repro.files import read_json
from repro.records import Record, collect, read_record, write_record
from repro.report import blocks, data_of, listing, plot_names, rendered
from repro.rows import ROWS, Row
from repro.same_bits import OverMqtt

DOCUMENT = "fedavg-paper.md"
FIGURE, OVER_MQTT = "figure-1.json", "over-mqtt.json"


def list_rows(rows: Sequence[Row], out: Path) -> int:
    """Print them, and what they cost; 0.

    Raises:
        StateError: a result is damaged, or the disk fails.
    """
    print_rows(rows, out)
    hours = sum(hours_expected(row) or 0 for row in {row.name: row for row in rows}.values())
    print(
        "core-hours: one learning rate, as many rounds as the paper took, on one x86-64 core; "
        f"together {hours:,.1f}. A search takes two to five times that"
    )
    with disk_errors_of(out):
        if not any(out.glob("*.json")):
            print(
                f"nothing is in {str(out)!r}: run this in a copy of fedtide's repository, or --out"
            )
    return 0


def print_rows(rows: Sequence[Row], out: Path) -> None:
    """Where they stand.

    Raises:
        StateError: a result is damaged, or the disk fails.
    """
    records = collected(out)
    print("\n".join([*listing(rows, records), *(f"data: {x}" for x in data_of(rows, records))]))


def write_report(out: Path, docs: Path) -> int:
    """Compact results from all runs, then the document's generated parts and its plots; 0.

    Raises:
        ConfigError: there is no document, or it has no place for a part.
        StateError: a result is damaged, or the disk fails.
    """
    from repro.plots import curve_plots, figure_plot

    path = docs / DOCUMENT
    if not path.is_file():
        raise ConfigError(
            f"there is no document {str(path)!r}",
            hint="--report writes into a copy of fedtide's repository: run it there, or name its "
            "folder docs with --docs",
        )
    records = collected(out)
    for record in records.values():
        write_record(out, record)
    figure = read_figure(out)
    plots = curve_plots(records)
    if figure is not None:
        plots["figure-1"] = figure_plot(figure)
    folder = docs / "fedavg"
    with disk_errors_of(folder):
        folder.mkdir(exist_ok=True)
        for name, svg in plots.items():
            write_atomically(folder / f"{name}.svg", svg.encode())
        document = path.read_text(encoding="utf-8")
        texts = blocks(records, figure, plot_names(records), read_over_mqtt(out))
        text = rendered(document, texts)
        write_atomically(path, text.encode())
    print(f"{path}: {len(records)} rows with results, {len(plots)} plots")
    return 0


def collected(out: Path) -> dict[str, Record]:
    """The results of every row that has any.

    Raises:
        StateError: a result is damaged, or the disk fails.
    """
    rows = {row.name: row for row in ROWS}
    found = {name: collect(out, row) for name, row in rows.items()}
    return {name: record for name, record in found.items() if record is not None}


def saved(out: Path) -> dict[str, Record]:
    """Of the compact files alone: without what has been run since they were written.

    Raises:
        StateError: a file is damaged, or the disk fails.
    """
    found = {name: read_record(out, name) for name in dict.fromkeys(row.name for row in ROWS)}
    return {name: record for name, record in found.items() if record is not None}


def read_figure(out: Path) -> Figure | None:
    """None: it was not made.

    Raises:
        StateError: its file is damaged, or the disk fails.
    """
    return read_json(out / FIGURE, Figure, "fedtide repro fedavg --figure 1 makes it")


def read_over_mqtt(out: Path) -> OverMqtt | None:
    """None: no row was run so.

    Raises:
        StateError: its file is damaged, or the disk fails.
    """
    return read_json(out / OVER_MQTT, OverMqtt, "fedtide repro fedavg --over-mqtt makes it")
