"""`repro fedavg --over-mqtt`: a row in the simulator and with real processes, bit by bit."""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from coordinator.store import Model
from demo.brokers import Broker, find_broker, mosquitto_version
from fedtide.errors import StateError
from fedtide.files import locked, make_folder
from repro.experiment import Experiment
from repro.files import write_json
from repro.real_federation import federate, models_of, prepare, users
from repro.reporting import OVER_MQTT, read_over_mqtt
from repro.rows import Row
from repro.same_bits import Comparison, OverMqtt, compare
from repro.setting import Setting, bundle_of, devices_of, fetch
from repro.trials import folder_name, read_course, run_trial
from repro.view import Progress
from simulator.fleet.environment import packages
from simulator.learning.datasets import open_data_set
from simulator.learning.learner import Learner
from simulator.learning.models import Version
from simulator.report.curves import rounds_to_target


class Options(Struct, frozen=True):
    """Of the command line."""

    out: Path
    rounds_max: int
    workers: int = 1
    data_dir: Path | None = None
    bundle: Path | None = None
    plain: bool = True


def run_over_mqtt(row: Row, parsed: argparse.Namespace) -> int:
    """Run a row; 1 if a bit differs.

    Raises:
        FedtideError: see `run_both`.
    """
    experiment = msgspec.structs.replace(
        row.experiment, learning_rate=parsed.learning_rate, seed=parsed.seed
    )
    if parsed.download:
        fetch({experiment.data}, parsed.data_dir)
    options = Options(
        parsed.out,
        parsed.rounds_max or experiment.rounds_max,
        parsed.workers,
        parsed.data_dir,
        parsed.bundle,
        parsed.plain,
    )
    return run_both(experiment, row.name, options)


def run_both(experiment: Experiment, name: str, options: Options) -> int:
    """Simulate, run the same with real processes, and compare; 1 if a bit differs.

    Both go on where they were interrupted.

    Raises:
        FedtideError: there is no Mosquitto, data or disk fail, or a process ends unplanned.
    """
    kind = find_broker("mosquitto")
    data = open_data_set(experiment.data, options.data_dir)
    bundle = bundle_of(experiment, options.bundle)
    parts = devices_of(experiment, data)
    with Progress(plain=options.plain) as progress:
        setting = Setting(Learner(bundle, data, parts), data.about)
        simulated = _simulated(experiment, name, setting, options, progress)
        watched = _Watched({version.version: version.digest for version in simulated}, progress)
        folder = options.out.resolve() / name / f"mqtt-{folder_name(experiment)}"
        with locked(folder, "fedtide repro --over-mqtt"), _stopped_in_order():
            prepare(experiment, bundle, data, parts, folder)
            del setting, data
            known = models_of(folder)
            last = len(simulated) - 1
            progress.begin(
                f"{name} over MQTT", f"{experiment.devices} clients", len(known) - 1, last
            )
            bytes_max = None
            if watched.heard(known):
                broker = Broker(kind, folder / "broker", users(experiment))
                bytes_max = federate(experiment, folder, broker, watched.heard, progress.say)
    if not watched.comparison.complete:
        raise StateError(
            f"the coordinator ended before round {last}: {watched.comparison.verdict()}",
            hint="run the same command again: it goes on",
        )
    result = _result(name, experiment, watched, bytes_max, read_over_mqtt(options.out))
    make_folder(options.out)
    write_json(options.out / OVER_MQTT, result)
    _tell(result, watched, options.out, folder)
    return 0 if result.comparison.differs is None else 1


def _tell(result: OverMqtt, watched: _Watched, out: Path, folder: Path) -> None:
    reached, size = result.rounds, result.clients_bytes
    rounds = "target not reached" if reached is None else f"target after {reached:.1f} rounds"
    memory = "" if size is None else f", clients at most {size / 1e6:,.0f} MB together"
    print(f"{out / OVER_MQTT}: {rounds}{memory}")
    if result.comparison.differs is not None:
        later = [model for model in watched.models if model.round_id != model.version]
        for model in later[:1]:
            print(f"version {model.version} is of round {model.round_id}: one came to nothing")
        print(f"{folder}: logs and state; remove it to begin anew")
    print(f"{result.name}: {result.comparison.verdict()}", flush=True)


def _simulated(
    experiment: Experiment, name: str, setting: Setting, options: Options, progress: Progress
) -> list[Version]:
    """Versions up to the target or the limit, from the run's folder as far as they are there.

    Raises:
        FedtideError: see `repro.trials.run_trial`.
    """
    folder = options.out / name / folder_name(experiment)
    limit = min(options.rounds_max, experiment.rounds_max)
    course = read_course(folder, experiment)
    done = -1 if course is None else course.last_round
    progress.begin(f"{name} in the simulator", "to compare with", done, limit)
    result = run_trial(experiment, folder, setting, options.workers, limit, progress.version)
    reached = [
        version.version
        for version in result.versions
        if version.metrics is not None and (version.metrics.accuracy or 0.0) >= experiment.target
    ]
    last = min([limit, *reached[:1]])
    return [version for version in result.versions if version.version <= last]


class _Watched:
    """The real run beside the simulated one, as it comes."""

    def __init__(self, digests: dict[int, str], progress: Progress) -> None:
        self._digests = digests
        self._progress = progress
        self.models: list[Model] = []
        self.comparison = Comparison(len(digests), 0)

    def heard(self, models: list[Model]) -> bool:
        """Whether to go on."""
        for model in models[len(self.models) : len(self._digests)]:
            self._progress.version(Version(model.version, model.ref.digest, metrics=model.metrics))
        self.models = [model for model in models if model.version in self._digests]
        real = {model.version: model.ref.digest for model in models}
        self.comparison = compare(self._digests, real)
        return not self.comparison.complete


def _result(
    name: str,
    experiment: Experiment,
    watched: _Watched,
    bytes_max: int | None,
    before: OverMqtt | None,
) -> OverMqtt:
    models = watched.models
    curve = [
        (model.version, round(model.metrics.accuracy or 0.0, 6))
        for model in models
        if model.metrics is not None
    ]
    if before is not None and (before.name, before.experiment) == (name, experiment):
        bytes_max = max(bytes_max or 0, before.clients_bytes or 0) or None  # in any of its lives
    made_ms = [model.made_at_ms for model in models if model.version]
    paces = [after - before for before, after in pairwise(made_ms)]
    return OverMqtt(
        name,
        experiment,
        watched.comparison,
        rounds_to_target(curve, experiment.target),
        models[-1].ref.digest if models else "",
        tuple(curve),
        round(median(paces) / 1000, 1) if paces else None,
        bytes_max,
        {
            "mosquitto": mosquitto_version(),
            "python": platform.python_version(),
            **packages(),
            "paho-mqtt": version("paho-mqtt"),
        },
    )


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end what was started, as Ctrl-C does."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, _interrupt) for number in numbers]
    try:
        yield
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        raise
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
