"""Running rows and the figure: which run comes next, its progress, its results on disk."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import msgspec

from fedtide.errors import StateError
from fedtide.files import make_folder, write_atomically
from repro.experiment import Experiment, Result
from repro.figure_one import SETTING, Figure, make_figure
from repro.files import read_json, write_json
from repro.race import NOTHING, Step, Trial, next_step
from repro.records import compared, merged, read_record, run_here, write_record
from repro.reporting import FIGURE, print_rows
from repro.rows import Row
from repro.setting import Setting, fetch, open_setting
from repro.trials import folder_name, read_course, run_trial
from repro.view import Progress


def run_rows(rows: list[Row], parsed: argparse.Namespace) -> int:
    """Search each row's learning rate, or run the one that was asked for; 0.

    Raises:
        FedtideError: see `repro.trials.run_trial`.
    """
    if parsed.download:
        fetch({row.experiment.data for row in rows}, parsed.data_dir)
    limit = math.inf if parsed.rounds_max is None else float(parsed.rounds_max)
    try:
        with Progress(plain=parsed.plain) as progress:
            for row in {row.name: row for row in rows}.values():
                _Search(row, parsed, limit, progress).run()
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        raise
    print_rows(rows, parsed.out)
    return 0


class _Search:
    """All runs of a row."""

    def __init__(
        self, row: Row, parsed: argparse.Namespace, limit: float, progress: Progress
    ) -> None:
        self._row = row
        self._seed: int = parsed.seed
        self._rate: float | None = parsed.learning_rate
        self._workers: int = parsed.workers
        self._data_dir: Path | None = parsed.data_dir
        self._bundle: Path | None = parsed.bundle
        self._out: Path = parsed.out
        self._limit = limit
        self._progress = progress
        self._setting: Setting | None = None

    def run(self) -> None:
        """One learning rate after the other.

        Raises:
            FedtideError: see `repro.trials.run_trial`.
        """
        before: Step | None = None
        while (step := self._next()) is not None:
            if step == before:
                raise StateError(
                    f"{self._row.name} with learning rate {step.learning_rate:g} ended before "
                    f"round {step.rounds_max:g} and says nothing of why",
                    hint=f"remove {str(self._folder(self._experiment(step)))!r} to begin it anew",
                )
            before = step
            self._go(step)

    def _next(self) -> Step | None:
        trials = self._trials()
        if self._rate is None:
            return next_step(self._row.search, trials, self._limit)
        trial = trials.get(self._rate, NOTHING)
        done = trial.ended or trial.last_round >= self._limit
        return None if done else Step(self._rate, self._limit, "as asked for")

    def _trials(self) -> dict[float, Trial]:
        """What was run here: results that came with a copy of the repository are not."""
        of = self._row.experiment
        return run_here(self._out, self._row).trials(of.target, of.rounds_max, self._seed)

    def _go(self, step: Step) -> None:
        experiment = self._experiment(step)
        if self._setting is None:
            self._setting = open_setting(experiment, self._data_dir, self._bundle)
            self._progress.say(f"{self._row.name}: {self._setting.data}")
        until = min(step.rounds_max, experiment.rounds_max)
        done = self._trials().get(step.learning_rate, NOTHING).last_round
        title = f"{self._row.name}, learning rate {step.learning_rate:g}"
        self._progress.begin(title, step.why, done, min(until, self._row.paper_rounds))
        result = run_trial(
            experiment,
            self._folder(experiment),
            self._setting,
            self._workers,
            until,
            self._progress.version,
        )
        self._progress.say(f"{title}: {_came_to(result)}")
        self._record(experiment)

    def _record(self, experiment: Experiment) -> None:
        before, here = read_record(self._out, self._row.name), run_here(self._out, self._row)
        write_record(self._out, merged(self._row.name, before, here))
        course = read_course(self._folder(experiment))
        line = None if course is None else compared(before, course)
        if line is not None:
            self._progress.say(f"{self._row.name}: {line}")

    def _experiment(self, step: Step) -> Experiment:
        return msgspec.structs.replace(
            self._row.experiment, learning_rate=step.learning_rate, seed=self._seed
        )

    def _folder(self, experiment: Experiment) -> Path:
        return self._out / self._row.name / folder_name(experiment)


def _came_to(result: Result) -> str:
    if result.rounds is not None:
        return f"{100 * result.experiment.target:g}% in {result.rounds:.1f} rounds"
    if result.ended.startswith("diverged"):
        return result.ended
    return f"{100 * result.experiment.target:g}% not reached by round {result.versions[-1].version}"


def run_figure(parsed: argparse.Namespace) -> int:
    """Figure 1; 1 if its finding is not there.

    Raises:
        FedtideError: see `repro.figure_one.make_figure`.
    """
    experiment = msgspec.structs.replace(SETTING, seed=parsed.seed)
    if parsed.download:
        fetch({experiment.data}, parsed.data_dir)
    make_folder(parsed.out)
    figure = make_figure(
        experiment, parsed.data_dir, parsed.workers, lambda line: print(line, flush=True)
    )
    path = parsed.out / (FIGURE if experiment == SETTING else f"figure-1-seed-{parsed.seed}.json")
    known = read_json(path, Figure, "remove it")
    if known is None:
        write_json(path, figure)
    elif known == figure:
        print(f"the same bits as {path}")
    else:
        print(f"not the bits of {path}, which stays: another kind of processor, or another version")
    try:
        from repro.plots import figure_plot
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed")
    else:
        picture = path.with_suffix(".svg")
        write_atomically(picture, figure_plot(figure).encode())
        print(picture)
    print(figure.verdict(), flush=True)
    return 0 if figure.reproduced else 1
