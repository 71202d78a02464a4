"""The folder of one run: what it is, how far it got, and how it goes on.

NAME/lrRATE/experiment.json   what runs here
           /journal.jsonl     each version: digest, accuracy (simulator.learning.models)
           /model-*.f32       the newest of them
           /result.json       how it ended, or that it stopped to let others go first
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from fedtide.errors import DamagedError, StateError
from fedtide.files import disk_errors_of, locked, make_folder, write_atomically
from repro.experiment import Experiment, Result, curve_of, run
from repro.files import read_json
from repro.race import NOTHING
from repro.setting import Setting
from simulator.learning.models import JOURNAL, Version

EXPERIMENT, RESULT = "experiment.json", "result.json"
_NO_MATTER = {"target", "rounds_max", "evaluate_every"}
"""Of an experiment: these decide how long it runs and what is measured, not what is learned."""
_NAME = re.compile(r"lr([0-9.]+)(?:-seed([0-9]+))?")


class Label(Struct, frozen=True):
    """What runs in a folder."""

    experiment: Experiment
    data: str = ""
    """One line about it; empty: not known."""


class Ending(Struct, frozen=True):
    """Of a run. There are files with more in them; the journal has it, too."""

    experiment: Experiment
    ended: str


class Course(Struct, frozen=True):
    """How far a run got."""

    experiment: Experiment
    versions: tuple[Version, ...]
    diverged: str | None = None
    """How it ended, if it came to values that are not finite."""
    data: str = ""
    """One line about it; empty: not known."""

    @property
    def last_round(self) -> int:
        """The newest version on disk; -1: none."""
        return self.versions[-1].version if self.versions else NOTHING.last_round

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """(round, accuracy) of the versions that were measured."""
        return curve_of(self.versions)


def folder_name(experiment: Experiment) -> str:
    """Of a run beside others of its row: all but the rate is in the row's name."""
    seed = f"-seed{experiment.seed}" if experiment.seed else ""
    return f"lr{experiment.learning_rate:g}{seed}"


def _named(folder: Path, base: Experiment) -> Label | None:
    match = _NAME.fullmatch(folder.name)
    if match is None:
        return None
    rate, seed = match.groups()
    return Label(msgspec.structs.replace(base, learning_rate=float(rate), seed=int(seed or 0)))


def read_course(folder: Path, otherwise: Experiment | None = None) -> Course | None:
    """What is known of the run in a folder; None: nothing.

    `otherwise`: what runs there, but for rate and seed, if only a journal says that something does.

    Raises:
        DamagedError: a file cannot be read as what it is.
        StateError: the disk fails.
    """
    result = read_json(folder / RESULT, Ending, _anew(folder))
    label = read_json(folder / EXPERIMENT, Label, _anew(folder))
    versions = _journal(folder / JOURNAL)
    if label is None and result is not None:
        label = Label(result.experiment)
    if label is None and otherwise is not None and versions:
        label = _named(folder, otherwise)
    if label is None:
        return None
    diverged = result is not None and result.ended.startswith("diverged")
    ended = result.ended if diverged and result is not None else None
    return Course(label.experiment, versions, ended, label.data)


def run_trial(
    experiment: Experiment,
    folder: Path,
    setting: Setting,
    workers_count: int,
    rounds_max: float,
    on_version: Callable[[Version], None],
) -> Result:
    """Begin a run, or go on with it, up to round `rounds_max`.

    Raises:
        StateError: the folder is another experiment's, damaged, in use, or the disk is full.
        FedtideError: of data or a worker.
    """
    with locked(folder, "fedtide repro"):
        label = Label(experiment, setting.data)
        _check_same(label, folder)
        with disk_errors_of(folder):
            make_folder(folder)
            write_atomically(folder / EXPERIMENT, _json(label))
        result = run(
            experiment,
            folder,
            setting.learner,
            workers_count,
            rounds_max=rounds_max,
            on_version=on_version,
        )
        write_atomically(folder / RESULT, _json(Ending(experiment, result.ended)))
    return result


def _check_same(label: Label, folder: Path) -> None:
    course = read_course(folder)
    if course is None:
        return
    ours = _deciding(label)
    theirs = _deciding(Label(course.experiment, course.data or label.data))
    different = [
        f"{key} is {theirs.get(key)!r} there, {value!r} now"
        for key, value in ours.items()
        if theirs.get(key) != value
    ]
    if different:
        raise StateError(
            f"the folder {str(folder)!r} holds another experiment: {'; '.join(different)}",
            hint="give this one another folder with --out",
        )


def _deciding(label: Label) -> dict[str, object]:
    fields: dict[str, object] = msgspec.structs.asdict(label.experiment)
    decide = {key: value for key, value in fields.items() if key not in _NO_MATTER}
    return {**decide, "the data": label.data}


def _journal(path: Path) -> tuple[Version, ...]:
    with disk_errors_of(path.parent):
        lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        return tuple(msgspec.json.decode(line, type=Version) for line in lines)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise DamagedError(f"{str(path)!r} is damaged: {exc}", hint=_anew(path.parent)) from exc


def _json(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _anew(folder: Path) -> str:
    return f"remove {str(folder)!r} to begin anew"
