"""What is kept of the runs of a row: a compact file NAME.json beside the folder of its runs.

It has every run's experiment, its curve, and the digest of its newest model, by which anybody can
check that they got the same bits.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from fedtide.files import disk_errors_of, write_atomically
from repro.experiment import Experiment
from repro.files import read_json
from repro.race import Trial
from repro.rows import Row
from repro.trials import Course, read_course
from simulator.report.curves import rounds_to_target


class Run(Struct, frozen=True, forbid_unknown_fields=True):
    """One learning rate, one seed."""

    experiment: Experiment
    last_round: int
    digest: str
    """SHA-256 of the model of the last round."""
    training_s: float
    """Of all workers together, in training; evaluation is not in it."""
    diverged: str | None
    data: str
    """One line about it; empty: not known."""
    curve: tuple[tuple[int, float], ...]
    """(round, accuracy on the test set) where it was measured."""

    def trial(self, target: float, rounds_max: int) -> Trial:
        """As the race sees it; there is nothing to run beyond round `rounds_max`."""
        reached = rounds_to_target(self.curve, target)
        ended = reached is not None or self.last_round >= rounds_max or bool(self.diverged)
        return Trial(self.last_round, reached, ended, bool(self.diverged), self.curve)

    @property
    def key(self) -> tuple[int, float]:
        """One run for each of these in a record."""
        return self.experiment.seed, self.experiment.learning_rate


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """All runs of a row."""

    name: str
    runs: tuple[Run, ...]

    def trials(self, target: float, rounds_max: int, seed: int) -> dict[float, Trial]:
        """Those of a seed, by learning rate."""
        return {
            run.experiment.learning_rate: run.trial(target, rounds_max)
            for run in self.runs
            if run.experiment.seed == seed
        }


def run_of(course: Course) -> Run | None:
    """None: not even the initial model was measured."""
    if not course.versions:
        return None
    return Run(
        course.experiment,
        course.last_round,
        course.versions[-1].digest,
        round(sum(version.worker_s for version in course.versions), 1),
        course.diverged,
        course.data,
        tuple((number, round(accuracy, 6)) for number, accuracy in course.curve),
    )


def merged(name: str, *records: Record | None) -> Record:
    """Of each run whatever got furthest; of two with the same bits the first one."""
    runs: dict[tuple[int, float], Run] = {}
    for record in records:
        for run in record.runs if record is not None else ():
            known = runs.get(run.key, run)
            newer = (run.last_round, run.diverged or "") >= (known.last_round, known.diverged or "")
            # That another machine took another time for the same bits is no news.
            timeless = msgspec.structs.replace(run, training_s=known.training_s, data=known.data)
            newer = newer and timeless != known
            further, other = (run, known) if newer else (known, run)
            data = further.data or other.data
            runs[run.key] = msgspec.structs.replace(further, data=data)
    return Record(name, tuple(runs[key] for key in sorted(runs)))


def read_record(out: Path, name: str) -> Record | None:
    """The file of a row; None: there is none.

    Raises:
        DamagedError: it is no such file.
        StateError: the disk fails.
    """
    hint = "remove it; fedtide repro fedavg --report makes it again from the runs beside it"
    return read_json(out / f"{name}.json", Record, hint)


def run_here(out: Path, row: Row) -> Record:
    """What the folders of a row's runs hold.

    Raises:
        StateError: a file is damaged, or the disk fails.
    """
    with disk_errors_of(out):
        folders = sorted(path for path in (out / row.name).glob("lr*") if path.is_dir())
    courses = [read_course(folder, row.experiment) for folder in folders]
    found = [run_of(course) for course in courses if course is not None]
    return Record(row.name, tuple(run for run in found if run is not None))


def collect(out: Path, row: Row) -> Record | None:
    """The file of a row and the folders of its runs, put together; None: there is neither.

    Raises:
        StateError: a file is damaged, or the disk fails.
    """
    known, here = read_record(out, row.name), run_here(out, row)
    return merged(row.name, known, here) if known is not None or here.runs else None


def compared(before: Record | None, course: Course) -> str | None:
    """Whether a run came to the bits that were on record; None: nothing of it is there, or it has
    not come that far."""
    if before is None:
        return None
    key = (course.experiment.seed, course.experiment.learning_rate)
    known = {run.key: run for run in before.runs}.get(key)
    if known is None or course.last_round < known.last_round:
        return None
    digests = {version.version: version.digest for version in course.versions}
    same = "the same bits as" if digests[known.last_round] == known.digest else "OTHER BITS THAN"
    return f"{same} {before.name}.json has"


def write_record(out: Path, record: Record) -> None:
    """A line for each run, so that changes can be read.

    Raises:
        StateError: the disk is full or failing.
    """
    lines = b",\n".join(msgspec.json.encode(run) for run in record.runs)
    name = msgspec.json.encode(record.name)
    write_atomically(
        out / f"{record.name}.json", b'{"name":' + name + b',"runs":[\n' + lines + b"\n]}\n"
    )
