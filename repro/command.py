"""`fedtide repro fedavg`: the experiments of McMahan et al. 2016, run again on this machine."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fedtide.errors import ConfigError
from repro.rows import ROWS, Row
from simulator.side_by_side import usable_cores

OUT = Path("results") / "fedavg"
DOCS = Path("docs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument("paper", choices=["fedavg"], help="McMahan et al. 2016, arXiv 1602.05629")
    what = parser.add_argument_group("what to do")
    what.add_argument("--table", choices=sorted({row.table for row in ROWS}), help="run its rows")
    what.add_argument("--row", metavar="NAME", help="one row of it: see --list")
    what.add_argument("--partition", choices=["iid", "non-iid"], help="default: both")
    what.add_argument("--figure", choices=["1"], help="make it; exit code 1 if its finding fails")
    what.add_argument(
        "--list", action="store_true", help="all rows: the paper, ours, what it takes"
    )
    what.add_argument(
        "--report", action="store_true", help="write docs/fedavg-paper.md from results"
    )
    what.add_argument(
        "--over-mqtt",
        action="store_true",
        help="a row once more with real processes over Mosquitto; exit code 1 if a bit differs",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--learning-rate", default="grid", metavar="X", help="a number, or grid: search (default)"
    )
    how.add_argument("--rounds-max", type=int, metavar="N", help="go no further, for now")
    how.add_argument("--seed", type=int, default=0, metavar="N")
    how.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    how.add_argument("--data-dir", type=Path, metavar="FOLDER", help="default: FEDTIDE_DATA")
    how.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="the row's model, exported otherwise"
    )
    how.add_argument("--download", action="store_true", help="fetch the data that are missing")
    how.add_argument("--plain", action="store_true", help="lines, on a terminal too")
    how.add_argument(
        "--out", type=Path, default=OUT, metavar="FOLDER", help=f"results (default: {OUT})"
    )
    how.add_argument(
        "--docs", type=Path, default=DOCS, metavar="FOLDER", help="where --report writes"
    )


def run(parsed: argparse.Namespace) -> int:
    """Do it; the exit code.

    Raises:
        FedtideError: flags, data, a folder or the disk are not as they should be.
    """
    _check(parsed)
    if parsed.list:
        from repro.reporting import list_rows

        return list_rows(chosen_rows(parsed), parsed.out)
    if parsed.report:
        from repro.reporting import write_report

        return write_report(parsed.out, parsed.docs)
    if parsed.figure:
        from repro.running import run_figure

        return run_figure(parsed)
    if parsed.over_mqtt:
        from repro.over_mqtt import run_over_mqtt

        return run_over_mqtt(_one_row(parsed), parsed)
    from repro.running import run_rows

    return run_rows(chosen_rows(parsed), parsed)


def chosen_rows(parsed: argparse.Namespace) -> list[Row]:
    """The rows that the flags name.

    Raises:
        ConfigError: there is no such row.
    """
    rows = [
        row
        for row in ROWS
        if parsed.table in (None, row.table) and parsed.partition in (None, row.column)
    ]
    if not rows:
        raise ConfigError(
            f"table {parsed.table} has no rows of partition {parsed.partition!r}",
            hint="fedtide repro fedavg --list says which there are",
        )
    if parsed.row is None:
        return rows
    found = [row for row in rows if parsed.row in (row.name, row.line)]
    if not found:
        where = "" if parsed.table is None else f" in table {parsed.table}"
        names = ", ".join(dict.fromkeys(row.line for row in rows))
        raise ConfigError(
            f"there is no row {parsed.row!r}{where}",
            hint=f"there are: {names}\nfedtide repro fedavg --list says more",
        )
    return found


def _one_row(parsed: argparse.Namespace) -> Row:
    """What --over-mqtt runs."""
    if parsed.learning_rate is None:
        raise ConfigError(
            "--over-mqtt needs a learning rate", hint="--learning-rate 0.1; a search is no use here"
        )
    rows = {row.name: row for row in chosen_rows(parsed)}
    if len(rows) != 1:
        raise ConfigError(
            f"--over-mqtt runs one row, and the flags name {len(rows)}",
            hint="--row cnn-e5-b10 --partition iid",
        )
    return next(iter(rows.values()))


def _check(parsed: argparse.Namespace) -> None:
    if parsed.workers is None:
        parsed.workers = usable_cores()
    _at_least(1, "--workers", parsed.workers)
    if parsed.rounds_max is not None:
        _at_least(1, "--rounds-max", parsed.rounds_max)
    if not 0 <= parsed.seed < 2**53:
        raise ConfigError(f"--seed is {parsed.seed}, expected 0 to 2^53 - 1")
    parsed.learning_rate = _learning_rate(parsed.learning_rate)
    if parsed.bundle is not None:
        _check_bundle(parsed)
    if parsed.list and parsed.report:
        raise ConfigError("--list and --report are two commands", hint="give one of them")
    if parsed.figure and (parsed.learning_rate is not None or parsed.rounds_max is not None):
        raise ConfigError(
            "--figure goes without --learning-rate and --rounds-max: the paper says both",
            hint="leave them out",
        )
    if parsed.figure and (parsed.table or parsed.row or parsed.partition or parsed.over_mqtt):
        raise ConfigError(
            "--figure goes without --table, --row, --partition and --over-mqtt",
            hint="one command for the figure, another for the rows",
        )
    if not (parsed.table or parsed.row or parsed.figure or parsed.list or parsed.report):
        raise ConfigError(
            "nothing was asked for",
            hint="--table 2 --row cnn-e5-b10, --figure 1, --list, or --report",
        )


def _check_bundle(parsed: argparse.Namespace) -> None:
    if parsed.figure or parsed.list or parsed.report:
        raise ConfigError("--bundle goes with a row alone", hint="--row 2nn-c0.1 --partition iid")
    if len({row.experiment.model for row in chosen_rows(parsed)}) != 1:
        raise ConfigError(
            "--bundle is one model, and the flags name rows of several",
            hint="--row 2nn-c0.1 --partition iid",
        )
    if parsed.out.resolve() == OUT.resolve() and not parsed.over_mqtt:
        raise ConfigError(
            f"--bundle is another model than that of the results in {str(OUT)!r}",
            hint="give its results a folder of their own with --out",
        )


def _at_least(least: int, flag: str, value: int) -> None:
    if value < least:
        raise ConfigError(f"{flag} is {value}, expected {least} or more")


def _learning_rate(text: str) -> float | None:
    """None: search."""
    if text == "grid":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1000:
        raise ConfigError(f"--learning-rate is {text!r}, expected grid, or a number up to 1000")
    return value
