"""An experiment of the paper with real processes: Mosquitto, the coordinator, one client a device.

FOLDER/prepared.json      what was prepared, once all of it is there
      /bundle, data/      the model; the test set, and each device's examples
      /coordinator, device-*, broker    state, configurations, logs

All that lasts is theirs, and they go on by themselves: so does a run that was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from coordinator.cohort import wanted_count
from coordinator.store import Model, Store
from demo.brokers import COORDINATOR, Broker
from demo.local import LocalFederation
from demo.processes import ProcessError
from fedtide.bundle import Bundle
from fedtide.dataset import Examples
from fedtide.errors import ConfigError, StateError
from fedtide.files import disk_errors_of, make_folder, write_atomically
from fedtide.manifest import MANIFEST_NAME
from repro.experiment import Experiment
from repro.guard import Guard
from simulator.device_names import device_name
from simulator.learning.datasets import TrainingData
from simulator.learning.partitions import Indices

FEDERATION = "fedavg"
PREPARED = "prepared.json"
DEADLINE_MS = 7 * 86_400_000
"""Of a round: nobody is to be late, however many share a core."""
LOOK_S = 0.5
MEMORY_S = 5.0


class Prepared(Struct, frozen=True):
    """What a folder was made for."""

    experiment: Experiment
    bundle: str
    """Its digest."""


def prepare(
    experiment: Experiment,
    bundle: Bundle,
    data: TrainingData,
    parts: list[Indices],
    folder: Path,
) -> None:
    """Write everything that processes read but for their configuration, unless it is there.

    Raises:
        ConfigError: the data are made anew for each round, which no file can hold.
        StateError: the folder is another experiment's, or the disk is full or failing.
    """
    content = msgspec.json.encode(Prepared(experiment, bundle.digest)) + b"\n"
    marker = folder / PREPARED
    with disk_errors_of(folder):
        if marker.exists():
            if marker.read_bytes() != content:
                raise StateError(
                    f"{str(folder)!r} was prepared for another experiment or another model",
                    hint="remove it, or give this run another folder with --out",
                )
            return
        make_folder(folder / "data")
        for name in (*bundle.manifest.files, MANIFEST_NAME):
            path = folder / "bundle" / name
            make_folder(path.parent)
            path.write_bytes(bundle.fetch(name))
        _refuse_augmented(data, parts[0])
        _save(folder / "data" / "test.npz", data.test)
        for number, part in enumerate(parts):
            _save(_data_path(folder, number), data.examples(part))
        write_atomically(marker, content)


def federate(
    experiment: Experiment,
    folder: Path,
    broker: Broker,
    on_models: Callable[[list[Model]], bool],
    say: Callable[[str], None],
) -> int | None:
    """Run a prepared experiment, or go on with it, as long as `on_models` returns True.

    It gets all models there are, again and again. Then all processes are stopped, as an operator
    would, and the next call goes on with the round that they were in.
    Returns the highest sum of the clients' memory in bytes, shared pages counted once; None where
    nothing tells it.

    Raises:
        FedtideError: a process ended when nobody had planned it; with the end of its log.
    """
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        stack.enter_context(broker)
        guard.watch(broker.process_id)
        federation = LocalFederation(folder, broker, FEDERATION)
        _configure(federation, experiment)
        stack.enter_context(federation)
        started_ms = time.time_ns() // 1_000_000
        for child in (federation.coordinator, *federation.devices.values()):
            child.start()
            guard.watch(child.process_id)
        watch = _Watch(federation, started_ms, say)
        while True:
            ended = watch.look()
            if watch.models and not on_models(watch.models):
                return watch.bytes_max
            if ended:
                return watch.bytes_max
            with suppress(ProcessError):  # it goes on: time for another look
                federation.coordinator.wait(LOOK_S)


def models_of(folder: Path) -> list[Model]:
    """What the run in a folder has made so far.

    Raises:
        StateError: it cannot be read.
    """
    state_dir = folder / COORDINATOR
    if not (state_dir / "coordinator.db").exists():
        return []
    store = Store(state_dir, read_only=True)
    try:
        return store.models()
    finally:
        store.close()


class _Watch:
    """What is to be seen of the processes from outside."""

    def __init__(
        self, federation: LocalFederation, started_ms: int, say: Callable[[str], None]
    ) -> None:
        self._federation = federation
        self._started_ms = started_ms
        self._say = say
        self._told_s = self._measured_s = time.monotonic()
        self._everybody = False
        self.models: list[Model] = []
        self.bytes_max: int | None = None

    def look(self) -> bool:
        """Whether the coordinator has finished.

        Raises:
            ProcessError: a process ended when nobody had planned it.
        """
        coordinator = self._federation.coordinator
        coordinator.check(may_end=True)
        ended = coordinator.exit_code() == 0
        if not ended:
            for child in self._federation.devices.values():
                child.check()
        self._read()
        if time.monotonic() - self._measured_s > MEMORY_S:
            self._measured_s = time.monotonic()
            self._measure()
        return ended

    def _read(self) -> None:
        try:
            store = Store(self._federation.state_dir, read_only=True)
        except StateError:  # the coordinator has yet to make it
            return
        try:
            self.models = store.models()
            here = store.devices_since(self._started_ms)
        finally:
            store.close()
        wanted = len(self._federation.devices)
        now_s = time.monotonic()
        if not self._everybody and (here == wanted or now_s - self._told_s > 10):
            self._told_s = now_s
            self._everybody = here == wanted
            self._say(f"{here} of {wanted} devices online")

    def _measure(self) -> None:
        sizes = [_pss_bytes(child.process_id) for child in self._federation.devices.values()]
        known = [size for size in sizes if size is not None]
        if known:
            self.bytes_max = max(self.bytes_max or 0, sum(known))


def _configure(federation: LocalFederation, experiment: Experiment) -> None:
    wanted = wanted_count(experiment.rounds(), experiment.devices)
    rounds_table = {
        **msgspec.to_builtins(experiment.rounds()),
        # One that is never waited for: its end is a round of evaluation, which takes a number, and
        # a run that went on after it would draw other cohorts than one that was never interrupted.
        "count": experiment.rounds_max + 1,
        "quorum": wanted,
        # Before every round: a cohort is drawn from all devices, as in the simulator.
        "devices_min": experiment.devices,
        "collect_ms": DEADLINE_MS,
    }
    patient = {"give_up_ms": 0}
    data = federation.folder / "data"
    federation.add_coordinator(
        federation.folder / "bundle",
        broker=patient,
        rounds={key: value for key, value in rounds_table.items() if value is not None},
        plan=msgspec.to_builtins(experiment.plan()),
        evaluation={"data": str((data / "test.npz").resolve())},
        vetting={"norm_factor": 0.0},
        history={"rounds_kept": 1},
    )
    for number in range(experiment.devices):
        federation.add_device(
            device_name(number),
            _data_path(federation.folder, number),
            broker=patient,
            training={"runtime": "portable"},
        )


def users(experiment: Experiment) -> list[str]:
    """Who has an account at the broker."""
    return [COORDINATOR, *(device_name(number) for number in range(experiment.devices))]


def _data_path(folder: Path, number: int) -> Path:
    return folder / "data" / f"{device_name(number)}.npz"


def _refuse_augmented(data: TrainingData, part: Indices) -> None:
    one, other = data.examples(part, 0), data.examples(part, 1)
    if not np.array_equal(one.x, other.x):
        raise ConfigError(
            f"the data set {data.name!r} looks different in each round, and a device's file is "
            "always the same",
            hint="--over-mqtt is for rows on MNIST and Shakespeare",
        )


def _save(path: Path, examples: Examples) -> None:
    np.savez_compressed(path, x=examples.x, y=examples.y)


def _pss_bytes(process_id: int | None) -> int | None:
    """Memory of a process, its share of what it shares; None where the system does not tell."""
    try:
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
