"""One self-contained HTML page about a simulation: no scripts, nothing loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from simulator.fleet.record import Record, policy_entry
from simulator.report.comparison import PLOTS
from simulator.report.figures import EVERY_DEVICE
from simulator.report.portrait import profiles_plot, timeline_plot
from simulator.report.summary import PolicyFigures, Summary
from simulator.report.table import rows_of
from simulator.report.tasks import may_count_late
from simulator.report.templates import templates_in
from simulator.report.timeline import timeline
from simulator.report.verdict import headline
from simulator.report.words import number_words, share_words, time_words


class Portrait(NamedTuple):
    """What is drawn of one policy."""

    policy: PolicyFigures
    timeline: Markup | None
    profiles: Markup | None


def report_page(summary: Summary, records: Sequence[Record], profiles: Sequence[str] = ()) -> str:
    """The page's text; `records` and `profiles` as those of `summary`."""
    environment = templates_in(Path(__file__).parent)
    environment.filters["share"] = share_words
    environment.filters["time"] = time_words
    environment.filters["number"] = number_words
    header = records[0].header
    names = profiles or [EVERY_DEVICE] * header.devices
    return environment.get_template("report.html").render(
        summary=summary,
        rows=rows_of(summary),
        headline=headline(summary),
        plots={name: _markup(plot(summary)) for name, plot in PLOTS.items()},
        portraits=[
            _portrait(policy, record, names)
            for policy, record in zip(summary.policies, records, strict=True)
        ],
        conditions=list(flattened(_scenario_of(records))),
        packages=header.packages,
        digests=[(record.header.policy, record.digest) for record in records],
    )


def _scenario_of(records: Sequence[Record]) -> dict[str, Any]:
    """What all share, and the policies that are shown: each record may be of a time when the others
    were not what they are."""
    headers = [record.header for record in records]
    entries = [policy_entry(header.scenario, header.policy) for header in headers]
    return headers[0].scenario | {"policy": entries}


def flattened(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values; lists of tables by their number, from 1."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flattened(value, f"{name}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for number, entry in enumerate(value, 1):
                yield from flattened(entry, f"{name}[{entry.get('name', number)}].")
        elif value is not None:
            yield name, str(value)


def _portrait(policy: PolicyFigures, record: Record, profiles: Sequence[str]) -> Portrait:
    counted = policy.fates.get("counted", 0)
    task_ms = policy.work.counted_ms / counted if counted else 0.0
    late_counts = may_count_late(record.header)
    scene = timeline(record.events(), policy.rounds, task_ms, profiles, late_counts=late_counts)
    drawn = None if scene is None or not scene.devices else timeline_plot(scene, profiles)
    return Portrait(policy, _markup(drawn), _markup(profiles_plot(policy)))


def _markup(text: str | None) -> Markup | None:
    """Our own SVG: matplotlib escapes the names in it."""
    return None if text is None else Markup(text)  # noqa: S704
