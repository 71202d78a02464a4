"""The paper's Tables 1 to 4 as data: each cell with its setting, its number, and where to search.

McMahan et al. 2016, arXiv 1602.05629. A row is one cell. Cells of several tables that are the same
setting share a run, and so a name.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from repro.experiment import Experiment

Column = Literal["iid", "non-iid"]
ALL: Literal["all"] = "all"
GRID_STEPS = 6
"""Learning rates are 10^(k/6 - 2): the finer of the paper's two steps."""


class Search(Struct, frozen=True):
    """Where the best learning rate is looked for."""

    centre: int
    """k of the rate that is tried first."""
    probe: int = 0
    """Rounds after which rates are compared by accuracy; 0: only complete runs are compared."""


class Row(Struct, frozen=True):
    """A cell of a table."""

    table: str
    line: str
    """The same in both columns."""
    column: Column
    name: str
    """Of the run, and its folder."""
    label: str
    experiment: Experiment
    """Its learning rate is the first one tried."""
    search: Search
    paper_rounds: float
    target: float
    """Accuracy; several rows may be read off one run."""
    baseline: str | None = None
    """The line whose rounds, divided by this row's, are the paper's factor."""
    paper_updates: float | None = None
    """u, the paper's local updates a round, expected."""
    remembered: bool = False
    """The number was not checked against the paper."""


def grid_rate(k: int) -> float:
    """The learning rate number k: 0.01 for 0, 0.1 for 6, 1 for 12."""
    return round(10 ** (k / GRID_STEPS - 2), 4)


_2NN = Experiment(
    model="mnist_2nn",
    data="mnist",
    partition="iid",
    devices=100,
    fraction=0.1,
    epochs=1,
    batch_size=10,
    target=0.97,
    rounds_max=6000,
    learning_rate=0.1,
)
_CNN = replace(_2NN, model="mnist_cnn", target=0.99, rounds_max=2000)
_LSTM = replace(
    _2NN,
    model="char_lstm",
    data="shakespeare",
    partition="natural",
    devices=1239,
    target=0.54,
    rounds_max=5000,
)
_CIFAR = replace(_2NN, model="cifar_cnn", data="cifar10", epochs=5, batch_size=50, target=0.85)
_WORDS = replace(_LSTM, model="word_lstm", data="shakespeare_words", fraction=0.16, target=0.105)

_COLUMNS: tuple[Column, Column] = ("iid", "non-iid")
_LONG_ROUNDS = 120
"""Runs that the paper made in more than this many rounds are probed first."""


def _batch(size: int | Literal["all"]) -> str:
    return "binf" if size == ALL else f"b{size}"


def _batch_label(size: int | Literal["all"]) -> str:
    return "B = ∞" if size == ALL else f"B = {size}"


def _mnist_name(experiment: Experiment) -> str:
    """Of a run on MNIST."""
    is_2nn = experiment.model == "mnist_2nn"
    start = f"{'2nn' if is_2nn else 'cnn'}-{experiment.partition}"
    size = experiment.batch_size
    if (experiment.epochs, experiment.fraction, size, is_2nn) == (1, 0.1, ALL, False):
        return f"{start}-fedsgd"
    of_table_1 = experiment.epochs == 1 and is_2nn and size in (10, ALL)
    if of_table_1 or experiment.fraction != 0.1:
        return f"{start}-c{experiment.fraction:g}" + ("-binf" if size == ALL else "")
    return f"{start}-e{experiment.epochs}-{_batch(size)}"


def _probe(paper_rounds: float) -> int:
    return 0 if paper_rounds < _LONG_ROUNDS else min(int(paper_rounds / 60) * 10, 200)


def _mnist_search(experiment: Experiment, paper_rounds: float) -> Search:
    """Guesses: more local steps and pathological partitions want smaller rates."""
    shards = experiment.partition == "shards"
    cnn = experiment.model == "mnist_cnn"
    centre = {10: 8, 50: 9, ALL: 10}[experiment.batch_size]
    centre -= (cnn and experiment.batch_size == 10) + (experiment.epochs > 1) + shards
    if experiment.fraction == 0:
        centre -= 1
    return Search(centre, _probe(paper_rounds))


def _mnist(
    table: str, line: str, label: str, base: Experiment, rounds: tuple[float | None, float | None]
) -> list[Row]:
    """A line of Tables 1, 2 or 4; None: a dash in the paper."""
    made = []
    for column, paper in zip(_COLUMNS, rounds, strict=True):
        if paper is None:
            continue
        experiment = replace(base, partition="iid" if column == "iid" else "shards")
        search = _mnist_search(experiment, paper)
        experiment = replace(experiment, learning_rate=grid_rate(search.centre))
        name = _mnist_name(experiment)
        made.append(Row(table, line, column, name, label, experiment, search, paper, base.target))
    return made


_TABLE_1: tuple[tuple[str, Experiment, float, tuple[float | None, ...]], ...] = (
    # C, then rounds: IID B = ∞, IID B = 10, non-IID B = ∞, non-IID B = 10
    ("2nn", _2NN, 0.0, (1455, 316, 4278, 3275)),
    ("2nn", _2NN, 0.1, (1474, 87, 1796, 664)),
    ("2nn", _2NN, 0.2, (1658, 77, 1528, 619)),
    ("2nn", _2NN, 0.5, (None, 75, None, 443)),
    ("2nn", _2NN, 1.0, (None, 70, None, 380)),
    ("cnn", replace(_CNN, epochs=5), 0.0, (387, 50, 1181, 956)),
    ("cnn", replace(_CNN, epochs=5), 0.1, (339, 18, 1100, 206)),
    ("cnn", replace(_CNN, epochs=5), 0.2, (337, 18, 978, 200)),
    ("cnn", replace(_CNN, epochs=5), 0.5, (164, 18, 1067, 261)),
    ("cnn", replace(_CNN, epochs=5), 1.0, (246, 16, None, 97)),
)


def _table_1() -> list[Row]:
    rows = []
    for model, base, fraction, paper in _TABLE_1:
        for size, first in ((ALL, 0), (10, 1)):
            end = "-binf" if size == ALL else ""
            label = f"{model.upper()}, C = {fraction:g}, {_batch_label(size)}"
            line = f"{model}-c{fraction:g}{end}"
            experiment = replace(base, fraction=fraction, batch_size=size)
            cells = _mnist("1", line, label, experiment, (paper[first], paper[first + 2]))
            rows += [replace(row, baseline=f"{model}-c0{end}") for row in cells]
    return rows


_Steps = tuple[int, int | Literal["all"], float, float, float]
_TABLE_2_CNN: tuple[_Steps, ...] = (
    # E, B, u, then rounds: IID, non-IID
    (1, ALL, 1, 626, 483),
    (5, ALL, 5, 179, 1000),
    (1, 50, 12, 65, 600),
    (20, ALL, 20, 234, 672),
    (1, 10, 60, 34, 350),
    (5, 50, 60, 29, 334),
    (20, 50, 240, 32, 426),
    (5, 10, 300, 20, 229),
    (20, 10, 1200, 18, 173),
)
_TABLE_2_LSTM: tuple[_Steps, ...] = (
    (1, ALL, 1.0, 2488, 3906),
    (1, 50, 1.5, 1635, 549),
    (5, ALL, 5.0, 613, 597),
    (1, 10, 7.4, 460, 164),
    (5, 50, 7.4, 401, 152),
    (5, 10, 37.1, 192, 41),
)
_TABLE_4: tuple[_Steps, ...] = (
    (1, ALL, 1, 1468, 1817),
    (10, ALL, 10, 156, 1100),
    (1, 50, 12, 144, 1183),
    (20, ALL, 20, 92, 957),
    (1, 10, 60, 92, 831),
    (10, 50, 120, 45, 881),
    (20, 50, 240, 39, 835),
    (10, 10, 600, 34, 497),
    (20, 10, 1200, 32, 738),
)


def _line_and_label(model: str, epochs: int, size: int | Literal["all"]) -> tuple[str, str]:
    if (epochs, size) == (1, ALL):
        return f"{model}-fedsgd", f"{model.upper()}, FedSGD"
    line = f"{model}-e{epochs}-{_batch(size)}"
    return line, f"{model.upper()}, E = {epochs}, {_batch_label(size)}"


def _by_steps(table: str, model: str, base: Experiment, steps: tuple[_Steps, ...]) -> list[Row]:
    rows = []
    for epochs, size, updates, iid, non_iid in steps:
        line, label = _line_and_label(model, epochs, size)
        experiment = replace(base, epochs=epochs, batch_size=size)
        if line == "cnn-fedsgd":  # a version's evaluation costs nearly as much as its making
            experiment = replace(experiment, evaluate_every=5)
        for row in _mnist(table, line, label, experiment, (iid, non_iid)):
            made = replace(row, baseline=f"{model}-fedsgd", paper_updates=updates)
            rows.append(replace(made, remembered=table == "4"))
    return rows


def _recurrent(
    table: str,
    column: Column,
    model: str,
    experiment: Experiment,
    centre: int,
    paper_rounds: float,
    paper_updates: float | None = None,
) -> Row:
    """A cell of a recurrent model."""
    line, label = _line_and_label(model, experiment.epochs, experiment.batch_size)
    name = line.replace(model, f"{model}-natural" if column == "non-iid" else f"{model}-iid", 1)
    experiment = replace(experiment, learning_rate=grid_rate(centre))
    return Row(
        table, line, column, name, label, experiment, Search(centre, 20), paper_rounds,
        experiment.target, f"{model}-fedsgd", paper_updates,
    )  # fmt: skip


def _lstm() -> list[Row]:
    rows = []
    for epochs, size, updates, iid, non_iid in _TABLE_2_LSTM:
        centre = 13 if size == ALL else 12
        for column, paper in zip(_COLUMNS, (iid, non_iid), strict=True):
            experiment = replace(
                _LSTM,
                partition="natural" if column == "non-iid" else "iid_as_natural",
                epochs=epochs,
                batch_size=size,
                evaluate_every=1 if paper < 500 else 10,
            )
            rows.append(_recurrent("2", column, "lstm", experiment, centre, paper, updates))
    return rows


def _cifar() -> list[Row]:
    sgd = replace(_CIFAR, epochs=1, batch_size=ALL, target=0.82, rounds_max=10_000)
    avg = replace(_CIFAR, learning_rate_decay=0.99, rounds_max=3000)
    settings = (
        ("cifar-fedsgd", "CIFAR, FedSGD", replace(sgd, learning_rate_decay=0.9934), 8),
        ("cifar-e5-b50", "CIFAR, E = 5, B = 50", avg, 6),
    )
    paper = {
        "cifar-fedsgd": {0.80: 3750.0, 0.82: 6600.0},
        "cifar-e5-b50": {0.80: 280.0, 0.82: 630.0, 0.85: 2000.0},
    }
    return [
        Row(
            "3", line, "iid", line.replace("cifar", "cifar-iid", 1), f"{label}, {target:.0%}",
            replace(experiment, learning_rate=grid_rate(centre)), Search(centre, 100), rounds,
            target,
        )
        for line, label, experiment, centre in settings
        for target, rounds in paper[line].items()
    ]  # fmt: skip


def _words() -> list[Row]:
    sgd, avg = (replace(_WORDS, batch_size=size) for size in (ALL, 8))
    return [
        _recurrent("words", "non-iid", "words", sgd, 19, 820.0),
        _recurrent("words", "non-iid", "words", avg, 18, 35.0),
    ]


ROWS: tuple[Row, ...] = (
    *_table_1(),
    *_by_steps("2", "cnn", _CNN, _TABLE_2_CNN),
    *_lstm(),
    *_cifar(),
    *_by_steps("4", "2nn", _2NN, _TABLE_4),
    *_words(),
)
