"""What a simulation recorded, for people: progress, a table, JSON, one page.

`open_progress` · `summarise` · `print_summary` · `write_summary` · `write_report`. What needs rich,
matplotlib or jinja2 imports it when it is called.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedtide.files import write_atomically
from simulator.report.curves import rounds_to_target
from simulator.report.figures import summarise
from simulator.report.summary import Summary

if TYPE_CHECKING:
    from simulator.fleet.record import Record
    from simulator.report.progress import Progress

__all__ = [
    "Summary",
    "open_progress",
    "print_summary",
    "rounds_to_target",
    "summarise",
    "write_report",
    "write_summary",
]


def open_progress(*, plain: bool = False) -> Progress:
    """A screen that moves on a terminal; else, or if asked for, lines now and then."""
    from simulator.report import progress

    return progress.open_progress(plain=plain)


def print_summary(summary: Summary) -> None:
    """Policy against policy, on standard output."""
    from simulator.report.table import print_summary as printed

    printed(summary)


def write_summary(summary: Summary, path: Path) -> None:
    """Write `summary.json` (docs/simulation-report.md).

    Raises:
        StateError: the disk is full or failing.
    """
    raw = msgspec.json.format(msgspec.json.encode(summary), indent=1)
    write_atomically(path, raw + b"\n")


def write_report(
    summary: Summary, records: Sequence[Record], path: Path, profiles: Sequence[str] = ()
) -> None:
    """Write the page: everything in one file, nothing loaded from elsewhere.

    `records` and `profiles` are those that `summary` was made of.
    Raises:
        StateError: the disk is full or failing.
    """
    with _no_collections():
        from simulator.report.page import report_page

        text = report_page(summary, records, profiles)
    write_atomically(path, text.encode())


@contextmanager
def _no_collections() -> Iterator[None]:
    """Figures are half a megabyte each of small objects: to look through them while they are drawn
    takes longer than anything it frees is worth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
