"""What a device learns for itself and keeps from round to round: tensors that do not travel
(FedBN, Li et al. 2021), and the optimizer's state where the plan says so.

Two files take turns, and a round never overwrites what it began with. So a round that is trained
again, after a crash or because its update was lost, begins with the same state as the first time.
They are of one bundle; another bundle's are removed. In another run of the same bundle a device
keeps what it learned for itself; the optimizer's state belongs to the old run's models, and begins
afresh.

Vector files (`edge_client.vector_file`): MessagePack of `_Header`; the values, and the vectors of
the optimizer.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from edge_client.optimizers import OptimizerState, state_vectors_count
from edge_client.vector_file import read_vectors, split_values, write_vectors
from fedtide.files import disk_errors_of, make_folder
from fedtide.manifest import Manifest
from fedtide.messages import Task
from fedtide.vectors import Vector, require_range

_log = logging.getLogger(__name__)

FOLDER_NAME = "local"


class LocalState(NamedTuple):
    """What a round begins with."""

    values: Vector | None
    """float32, `manifest.local`; None: the bundle's initial values."""
    optimizer: OptimizerState | None
    """None: a fresh one."""


class _Header(Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[2]
    number: int
    """Of the save; the highest is the newest."""
    run_id: str
    round_id: int
    optimizer: str
    """Its name, empty if its state is not kept."""
    steps: int
    sizes: tuple[int, ...]
    """Of the values that do not travel, and of each of the optimizer's vectors."""


class _Entry(NamedTuple):
    header: _Header
    vectors: list[Vector]


class LocalStates:
    """The states of one device, in `FOLDER/local/BUNDLE`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER_NAME

    def load(self, task: Task, manifest: Manifest) -> LocalState:
        """What the task's round begins with: the newest state of an earlier round."""
        entry, _ = self._begun_with(task)
        if entry is None:
            return LocalState(None, None)
        header, (values, *vectors) = entry
        kept = manifest.local.stop - manifest.local.start
        if len(values) != kept:
            _log.warning("the saved local state is of another model; starting afresh")
            return LocalState(None, None)
        plan, optimizer = task.plan, None
        size = manifest.trained.stop - manifest.trained.start
        fits = [len(vector) for vector in vectors] == [size] * state_vectors_count(plan)
        same = header.run_id == task.run_id and header.optimizer == plan.optimizer
        if plan.optimizer_state == "kept" and same and fits:
            optimizer = OptimizerState(header.steps, tuple(vectors))
        return LocalState(values if kept else None, optimizer)

    def save(self, task: Task, values: Vector, optimizer: OptimizerState) -> None:
        """Keep what the task's round ended with, if there is anything to keep.

        Raises:
            StateError: the disk is full or failing; what the round began with is intact.
            OverflowError: a value is not finite, or too large to go on from.
        """
        kept = task.plan.optimizer_state == "kept"
        if not len(values) and not kept:
            return
        begun_with, other = self._begun_with(task)
        vectors = (values, *(optimizer.vectors if kept else ()))
        for vector in vectors:
            require_range(vector, "f32")
        header = _Header(
            version=2,
            number=0 if begun_with is None else begun_with.header.number + 1,
            run_id=task.run_id,
            round_id=task.round_id,
            optimizer=task.plan.optimizer if kept else "",
            steps=optimizer.steps if kept else 0,
            sizes=tuple(map(len, vectors)),
        )
        del begun_with  # its vectors are as large as what is saved
        with disk_errors_of(self._folder):
            make_folder(other.parent)
            for folder in self._folder.iterdir():
                if folder != other.parent:
                    shutil.rmtree(folder)
        write_vectors(other, msgspec.msgpack.encode(header), vectors)

    def _begun_with(self, task: Task) -> tuple[_Entry | None, Path]:
        """The newest state of an earlier round, and the file that may be written."""
        folder = self._folder / task.bundle.digest
        paths = (folder / "0", folder / "1")
        earlier = [
            (entry.header.number, path, entry)
            for path in paths
            if (entry := _read(path)) is not None
            and not (entry.header.run_id == task.run_id and entry.header.round_id >= task.round_id)
        ]
        if not earlier:
            return None, paths[0]
        _, newest, entry = max(earlier, key=lambda found: found[0])
        return entry, paths[1] if newest == paths[0] else paths[0]


def _read(path: Path) -> _Entry | None:
    """None if there is none, or none that is intact."""
    try:
        read = read_vectors(path)
    except FileNotFoundError:
        return None
    if read is not None:
        try:
            header = msgspec.msgpack.decode(read[0], type=_Header)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        else:
            vectors = split_values(read[1], header.sizes)
            if vectors is not None:
                return _Entry(header, vectors)
    _log.warning("a saved local state is damaged; training goes on without it")
    return None
