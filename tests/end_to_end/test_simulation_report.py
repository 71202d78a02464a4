"""The page and the table about simulated runs: whole, alone, true to the figures, and escaped."""

from __future__ import annotations

import gc
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from simulator.fleet import events
from simulator.fleet.record import Record
from simulator.fleet.totals import Totals
from simulator.report import open_progress, summarise, write_report
from simulator.report.comparison import _CAUSES, _curve
from simulator.report.digest import CAUSES
from simulator.report.drawing import TICKS_MOST, axes_of, svg, time_ticks_ms
from simulator.report.page import _scenario_of, flattened, report_page
from simulator.report.portrait import _MARKS, _moments
from simulator.report.progress import LiveProgress, PlainProgress
from simulator.report.summary import Summary
from simulator.report.table import best, print_summary, rows_of
from simulator.report.tasks import FATES, Task
from simulator.report.verdict import _least, headline
from tests.fleet_runs import header, profiles_of, random_run, record_of

DEVICES = 30
HOSTILE = '<script>alert("$x$")</script>&amp;'
_VOID = {"meta", "br", "hr", "img", "input", "link"}
_REFERENCE = re.compile(
    r"""<script|<link|<iframe|<img|<object|<embed|@import|url\(\s*['"]?(?!\#)"""
    r"""|\b(?:src|href|srcset|action|data|poster)\s*=\s*(?!["']?\#)""",
    re.IGNORECASE,
)


def references(page: str) -> list[str]:
    """Everything in a page that could load something, or run."""
    return [page[m.start() : m.start() + 60] for m in _REFERENCE.finditer(page)]


class _Balance(HTMLParser):
    """Complains where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.mistakes: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> _Balance:
    parser = _Balance()
    parser.feed(page)
    parser.close()
    return parser


def runs(folder: Path, *names: str, learns: float | None = 0.2) -> list[Record]:
    return [
        random_run(
            folder / str(index),
            header(name, devices=DEVICES, rounds=8, learning="real" if learns else "modelled"),
            collect_ms=10_000 + 20_000 * index,
            learns=learns,
        )
        for index, name in enumerate(names)
    ]


def page_of(records: list[Record]) -> tuple[str, Summary]:
    summary = summarise(records, profiles_of(DEVICES))
    return report_page(summary, records, profiles_of(DEVICES)), summary


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Summary, list[Record]]:
    records = runs(tmp_path_factory.mktemp("runs"), "hasty", "patient")
    return *page_of(records), records


def test_the_page_is_whole_and_small(learned: tuple[str, Summary, list[Record]]) -> None:
    page = learned[0]
    parser = parsed(page)
    assert (parser.mistakes, parser.open) == ([], [])
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 5 + 2 * 2
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert len(page) < 1_000_000


def test_the_page_loads_nothing(learned: tuple[str, Summary, list[Record]]) -> None:
    assert references(learned[0]) == []


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://example.org/a.js"></script>',
        "<script>x()</script>",
        '<img alt="" src=//example.org/a.png>',
        '<link rel="stylesheet" href="a.css">',
        "<style>@import 'a.css';</style>",
        "<style>b { background: url(https://example.org/a.png) }</style>",
        '<a href="https://example.org">',
        '<use xlink:href="http://example.org/a.svg#b"/>',
    ],
)
def test_a_reference_is_noticed(learned: tuple[str, Summary, list[Record]], planted: str) -> None:
    assert references(learned[0].replace("</body>", f"{planted}</body>"))


def test_the_page_says_what_the_figures_say(
    learned: tuple[str, Summary, list[Record]],
) -> None:
    page, summary, records = learned
    text = " ".join(" ".join(parsed(page).text).split())
    cells = re.findall(r'<td class="number">(.*?)</td>', page)
    expected = [cell.replace("'", "&#39;") for row in rows_of(summary) for cell in row.cells]
    assert [re.sub("</?b>", "", cell) for cell in cells[: len(expected)]] == expected
    flat = [index in row.best for row in rows_of(summary) for index in range(len(row.cells))]
    assert [cell.startswith("<b>") for cell in cells[: len(expected)]] == flat
    assert any(flat)
    assert headline(summary) in text
    assert text.index(headline(summary)) < text.index("Gini") < text.index("never heard")
    for policy, record in zip(summary.policies, records, strict=True):
        assert policy.verdict in text
        assert record.digest in text
        assert policy.target_reached is not None
        assert f"{policy.target_reached.rounds:.1f}" in expected
        assert f"{policy.participation.gini:.3f}" in expected


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    first = header(
        HOSTILE, devices=DEVICES, scenario={"name": HOSTILE, "fleet": {HOSTILE: HOSTILE}}
    )
    record = random_run(tmp_path / "r", first)
    names = [HOSTILE] * DEVICES
    summary = summarise([record], names)
    page = report_page(summary, [record], names)
    assert HOSTILE not in page
    assert references(page) == []
    assert parsed(page).mistakes == []
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    stream = io.StringIO()
    print_summary(
        summarise([random_run(tmp_path / "s", header("[red]x[/red]"))]), Console(file=stream)
    )
    assert "[red]x[/red]" in stream.getvalue()


def without_accuracy(record: Record) -> Record:
    """The same run of a model whose bundle names no classes: it has losses alone."""
    history = (
        msgspec.structs.replace(event, accuracy=None)
        if isinstance(event, events.Evaluated)
        else event
        for event in record.events()
    )
    return record_of(record.path.with_suffix(".losses"), record.header, *history)


def run_of(case: str, folder: Path) -> list[Record]:
    first = header(devices=DEVICES)
    match case:
        case "ten":
            return runs(folder, *(f"policy-{i}" for i in range(10)))
        case "timing":
            return runs(folder, "alone", learns=None)
        case "losses":
            return [without_accuracy(r) for r in runs(folder, "hasty", "patient")]
        case "nothing":
            return [record_of(folder / "nothing", first, cut=True)]
        case "one device":
            return [random_run(folder / "one", header(devices=1), cohort=1, wanted=1)]
        case _:
            return [
                record_of(folder / "nothing", first, cut=True),
                random_run(folder / "cut", first, cut=True),
                random_run(folder / "abandoned", first, collect_ms=500, quorum=6),
            ]


@pytest.mark.parametrize(
    "case",
    [
        "timing",
        "losses",
        "nothing",
        "one device",
        "interrupted and abandoned",
        pytest.param("ten", marks=pytest.mark.slow),
    ],
)
def test_any_run_can_be_reported(tmp_path: Path, case: str) -> None:
    records = run_of(case, tmp_path)
    summary = summarise(records, profiles_of(records[0].header.devices))
    write_report(summary, records, tmp_path / "report.html", profiles_of(records[0].header.devices))
    assert gc.isenabled()
    page = (tmp_path / "report.html").read_text()
    assert (parsed(page).mistakes, references(page)) == ([], [])
    for policy in summary.policies:
        assert policy.verdict.split(".")[0] in page
        assert policy.complete or f"{policy.name} was interrupted" in page


@pytest.mark.parametrize("target", [None, 0.9])
def test_a_model_with_losses_alone_is_compared_by_time(
    tmp_path: Path, target: float | None
) -> None:
    records = run_of("losses", tmp_path)
    summary = summarise(records, profiles_of(DEVICES), target)
    assert all(policy.curve for policy in summary.policies)
    assert (summary.learned, summary.target_accuracy, summary.target_given) == (False, None, False)
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=200))
    said = stream.getvalue()
    assert said.startswith("Most counted updates an hour: ")
    assert "final loss" in said
    assert "accuracy" not in said
    page = report_page(summary, records, profiles_of(DEVICES))
    assert "No accuracy was measured" in page
    assert "nothing was learned" not in page


def test_the_same_records_give_the_same_page(
    learned: tuple[str, Summary, list[Record]],
) -> None:
    assert page_of(learned[2])[0] == learned[0]


def test_what_is_laid_out_before_is_drawn_as_matplotlib_would() -> None:
    """Titles, labels and a legend outside find room."""

    def drawn(*, by_matplotlib: bool) -> str:
        figure, (left, right) = axes_of(2.0, 2, sharey=True)
        left.set_yticks([0, 1], ["a rather long name of a policy", "b"])
        left.barh([0, 1], [1_000, 2_000], label="downloaded")
        right.set_title("Rounds waited for", loc="left")
        right.set_xlabel("% of the rounds' time")
        figure.legend(loc="outside lower center")
        if not by_matplotlib:
            return svg(figure)
        figure.set_layout_engine("constrained")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        return stream.getvalue()

    ours = drawn(by_matplotlib=False)
    assert "a rather long name" in ours
    assert ours in drawn(by_matplotlib=True)


def test_there_is_no_chart_of_nothing(tmp_path: Path) -> None:
    nothing, waste = (
        "No device dropped out, none was late.",
        "No cause wasted as much as 0.1%",
    )
    drops = random_run(tmp_path / "drops", header(devices=DEVICES))
    ideal = random_run(tmp_path / "ideal", header(devices=DEVICES), collect_ms=10**9, drop_rate=0)
    for records, charts, sentences in (
        ([ideal], 4 + 1, (True, True)),
        ([drops, ideal], 5 + 2 + 1, (True, False)),
    ):
        page, _ = page_of(records)
        assert len(re.findall("<svg", page)) == charts
        assert (nothing in page, waste in page) == sentences
        assert parsed(page).mistakes == []


def test_the_table_fits_the_terminal(learned: tuple[str, Summary, list[Record]]) -> None:
    for width in (50, 200):
        stream = io.StringIO()
        print_summary(learned[1], Console(file=stream, width=width))
        lines = stream.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.split() == ["hasty", "patient"] for line in lines) == (width > 100)


def test_conditions_are_dotted_keys() -> None:
    table = {"name": "x", "rounds": {"count": 3}, "policy": [{"name": "a", "plan": {"epochs": 2}}]}
    assert list(flattened(table)) == [
        ("name", "x"),
        ("rounds.count", "3"),
        ("policy[a].name", "a"),
        ("policy[a].plan.epochs", "2"),
    ]


def test_conditions_are_those_that_each_record_was_made_under(tmp_path: Path) -> None:
    def scenario(*policies: tuple[str, float]) -> dict[str, object]:
        entries = [{"name": name, "rounds": {"over_selection": by}} for name, by in policies]
        return {"name": "small", "policy": entries}

    kept = header("a", scenario=scenario(("a", 1.5), ("b", 2.0), ("gone", 3.0)))
    anew = header("b", scenario=scenario(("a", 1.5), ("b", 2.5)))
    told = _scenario_of([record_of(tmp_path / one.policy, one) for one in (kept, anew)])
    assert told == scenario(("a", 1.5), ("b", 2.5))


def test_plain_progress_is_a_few_lines(learned: tuple[str, Summary, list[Record]]) -> None:
    stream, totals = io.StringIO(), learned[2][0].totals
    with PlainProgress(Console(file=stream, width=40)) as progress:
        progress.begin("hasty", totals.rounds_done)
        for _ in range(100):
            progress.round("hasty", totals)
        progress.end("hasty", totals)
    first, last = stream.getvalue().splitlines()
    assert first == f"hasty: {totals.rounds_done} rounds ..."
    assert f"round {totals.rounds_done} of {totals.rounds_done} · accuracy" in last


def test_the_screen_has_a_row_for_each_policy(learned: tuple[str, Summary, list[Record]]) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with LiveProgress(console) as progress:
        for record in learned[2]:
            progress.begin(record.header.policy, 8)
            progress.round(record.header.policy, record.totals)
    progress.end("hasty", learned[2][0].totals)
    console.print(progress.render())
    assert "hasty" in stream.getvalue()
    assert "✓" in stream.getvalue()
    assert isinstance(open_progress(plain=True), PlainProgress)


def test_a_device_that_came_back_too_late_is_marked_where_it_dropped() -> None:
    """The timeline says what the table says: it dropped, nobody was late."""
    task = Task(5, 1, 0, drops=[(2_000, "training")], ended_ms=9_000, fate="dropped")
    late = Task(6, 1, 0, ended_ms=9_500, fate="late")
    assert _moments([task, late]) == {"dropped": [(2_000, 5)], "late": [(9_500, 6)]}


def test_progress_says_of_which_model_an_accuracy_is(tmp_path: Path) -> None:
    """Models are measured beside the next round; what follows the last model is no round's time."""
    stream = io.StringIO()
    told = Totals(4)
    with PlainProgress(Console(file=stream, width=200)) as progress:
        progress.begin("p", 10)
        for event in (
            events.Evaluated(0, 0, 2.0, 0.1),
            events.ModelMade(2_000, 1, 1),
            events.Evaluated(2_000, 1, 1.0, 0.5),
            events.ModelMade(4_000, 2, 2),
        ):
            told.observe(event)
            progress.round("p", told)
        told.observe(events.Evaluated(4_000, 2, 1.0, 0.6))
        told.observe(events.Finished(9_000, "all rounds are done", True))
        progress.end("p", told)
    lines = stream.getvalue().splitlines()[1:]
    assert [line.split(" · ")[:3] for line in lines] == [
        ["p: round 1 of 10", "accuracy 10.0% untrained", "2 s of virtual time"],
        ["p: round 2 of 10", "accuracy 50.0% after round 1", "4 s of virtual time"],
        ["p: round 2 of 10", "accuracy 60.0%", "4 s of virtual time"],
    ]


def test_indices_of_nothing_are_no_numbers(tmp_path: Path) -> None:
    summary = summarise([record_of(tmp_path / "r", header(), cut=True)])
    cells = {row.label: row.cells for row in rows_of(summary)}
    assert cells["Gini coefficient"] == cells["Jain's index"] == ("-",)


def test_best_values_by_hand() -> None:
    assert best([3.0, None, 1.0, 1.0], ["3", "-", "1", "1"]) == {2, 3}
    assert best([3.0, None, 1.0], ["3", "-", "1"], most=True) == {0}
    assert best([2.0, 2.0], ["2", "2"]) == best([2.0], ["2"]) == frozenset()
    assert best([None, None], ["-", "-"]) == best([], []) == frozenset()


def test_a_difference_that_is_not_shown_is_none() -> None:
    values = [0.6381, 0.6384, 0.7]
    assert best(values, ["0.638", "0.638", "0.700"]) == {0, 1}
    assert best(values[:2], ["0.638", "0.638"]) == frozenset()
    assert _least({"a": 0.6381, "b": 0.6384, "c": 0.7}) == "a and b"
    assert _least({"a": 0.6381, "b": 0.6384}) == "all alike"


def two_policies(folder: Path, learning: Literal["real", "modelled"]) -> Summary:
    """`slow`: 20 s and 400 bytes for an update, nothing wasted, both devices heard once.
    `quick`: 10 s and 500 bytes, of two devices' 8 s of training 4 s late, one heard twice."""
    runs = []
    for name, round_ms, size, seconds in (("slow", 20_000, 400, 0), ("quick", 10_000, 500, 4)):
        told: list[events.Event] = [events.Evaluated(0, 0, 2.0, 0.1)]
        for number in (1, 2):
            from_ms, until_ms = (number - 1) * round_ms, number * round_ms
            device = number - 1 if name == "slow" else 0
            told += [
                events.RoundOpened(from_ms, number, "train", number - 1, 2, 1, 2),
                events.TaskGiven(from_ms, device, number, number - 1),
                events.TrainingBegan(from_ms, device, number),
                events.TrainingEnded(from_ms + 2_000, device, number, 1, 10),
                events.UploadEnded(from_ms + 2_500, device, number, size),
                events.Verdict(from_ms + 3_000, device, number, "accepted", "in time"),
            ]
            if seconds and number == 1:
                told += [
                    events.TaskGiven(from_ms + 3_000, 1, number, number - 1),
                    events.TrainingBegan(from_ms + 3_000, 1, number),
                    events.TrainingEnded(from_ms + 7_000, 1, number, 1, 10),
                ]
            told += [
                events.RoundClosed(until_ms, number, (events.Counted(device, number, 60.0),)),
                events.ModelMade(until_ms, number, number),
                events.Evaluated(until_ms, number, 1.0, 0.1 + 0.4 * number),
            ]
        told.append(events.Finished(2 * round_ms, "all rounds are done", True))
        if learning == "modelled":
            told = [event for event in told if not isinstance(event, events.Evaluated)]
        first = header(name, devices=2, rounds=2, learning=learning)
        runs.append(record_of(folder / f"{name}-{learning}", first, *told))
    return summarise(runs, target=0.5 if learning == "real" else None)


def test_the_answer_is_the_first_line(tmp_path: Path) -> None:
    """0.5 is there after one round: 20 s and 400 bytes, 10 s and 500 bytes. Wasted: 0 and 4 of 8 s.
    Heard: once each (Gini 0), and twice and never (0.5)."""
    learned = two_policies(tmp_path, "real")
    rest = "least waste: slow; fairest: slow."
    assert headline(learned) == f"Fastest to 50.0%: quick; fewest bytes: slow; {rest}"
    rows = {row.label: (row.cells, set(row.best)) for row in rows_of(learned)}
    assert rows["time to 50.0%"] == (("20 s", "10 s"), {1})
    assert rows["bytes to 50.0%"] == (("400 B", "500 B"), {0})
    assert rows["rounds to 50.0%"] == (("1.0", "1.0"), set())
    assert rows["wasted"] == (("0", "50.0%, 4 s"), {0})
    assert rows["late"] == (("0", "50.0%, 4 s"), set())
    assert rows["Gini coefficient"] == (("0.000", "0.500"), {0})
    assert rows["rounds an hour"] == (("180", "360"), {1})
    timed = two_policies(tmp_path, "modelled")
    expected = "Most counted updates an hour: quick; fewest bytes an update: slow"
    assert headline(timed) == f"{expected}; {rest}"
    stream = io.StringIO()
    print_summary(timed, Console(file=stream, width=200))
    assert stream.getvalue().startswith(headline(timed))
    assert "50.0% of the training was wasted, all of it late." in timed.policies[1].verdict
    alone = summarise([record_of(tmp_path / "r", header(), cut=True)])
    assert headline(alone) == ""


def test_every_fate_has_one_name(tmp_path: Path) -> None:
    """Of the record, in the table, the plots and the definitions."""
    assert {name: label for name, (_, _, label) in _CAUSES.items()} == {c: c for c in CAUSES}
    assert all(label == name for name, (_, _, label) in _MARKS.items())
    text = (Path(__file__).parents[2] / "docs" / "simulation-report.md").read_text()
    assert [fate for fate in FATES if f"| {fate} |" not in text] == []


def test_ticks_of_time_are_round_and_few() -> None:
    second, minute, hour = 1_000, 60_000, 3_600_000
    assert time_ticks_ms(4 * second, 50 * second) == [5_000, 10_000, 20_000, 30_000]
    assert time_ticks_ms(4 * second, 14 * minute) == [
        10 * second, 30 * second, minute, 3 * minute, 10 * minute,
    ]  # fmt: skip
    assert time_ticks_ms(second, 20 * hour) == [
        second, 10 * second, minute, 10 * minute, hour, 10 * hour,
    ]  # fmt: skip
    assert 2 <= len(time_ticks_ms(1, 10_000 * hour)) <= TICKS_MOST


def test_curves_begin_when_the_first_round_opens(tmp_path: Path) -> None:
    """An hour without devices, then a round of 20 s: no slow climb from 0."""
    record = record_of(
        tmp_path / "r",
        header(devices=2, rounds=1, learning="real"),
        events.Evaluated(0, 0, 2.0, 0.1),
        events.RoundOpened(3_600_000, 1, "train", 0, 1, 1, 2),
        events.TaskGiven(3_600_000, 0, 1, 0),
        events.UploadEnded(3_610_000, 0, 1, 400),
        events.Verdict(3_610_000, 0, 1, "accepted", "in time"),
        events.RoundClosed(3_620_000, 1, (events.Counted(0, 1, 60.0),)),
        events.ModelMade(3_620_000, 1, 1),
        events.Evaluated(3_620_000, 1, 1.0, 0.5),
        events.Finished(3_620_000, "all rounds are done", True),
    )
    policy = summarise([record]).policies[0]
    assert _curve(policy, learned=True) == [(0, 0, 10), (20_000, 400, 50)]
    assert _curve(policy, learned=False) == [(0, 0, 0), (20_000, 400, 1)]
