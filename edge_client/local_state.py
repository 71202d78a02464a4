"""What a device learns for itself and keeps from round to round: tensors that do not travel
(FedBN, Li et al. 2021), and the optimizer's state where the plan says so.

Two files take turns, and a round never overwrites what it began with. So a round that is trained
again, after a crash or because its update was lost, begins with the same state as the first time.
They are of one bundle; another bundle's are removed. In another run of the same bundle a device
keeps what it learned for itself; the optimizer's state belongs to the old run's models, and begins
afresh.

    file = SHA-256 of the rest (32 bytes) | MessagePack of `_Entry`
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from edge_client.optimizers import OptimizerState, state_vectors_count
from fedtide.files import disk_errors_of, make_folder, write_atomically
from fedtide.manifest import Manifest
from fedtide.messages import Task
from fedtide.vectors import Vector, encode_vector

_log = logging.getLogger(__name__)

FOLDER_NAME = "local"
_DIGEST_BYTES = 32


class LocalState(NamedTuple):
    """What a round begins with."""

    values: Vector | None
    """float32, `manifest.local`; None: the bundle's initial values."""
    optimizer: OptimizerState | None
    """None: a fresh one."""


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    number: int
    """Of the save; the highest is the newest."""
    run_id: str
    round_id: int
    values: bytes
    optimizer: str
    """Its name, empty if its state is not kept."""
    steps: int
    vectors: tuple[bytes, ...]


class LocalStates:
    """The states of one device, in `FOLDER/local/BUNDLE`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER_NAME

    def load(self, task: Task, manifest: Manifest) -> LocalState:
        """What the task's round begins with: the newest state of an earlier round."""
        entry, _ = self._begun_with(task)
        if entry is None:
            return LocalState(None, None)
        values = _vector(entry.values)
        kept = manifest.local.stop - manifest.local.start
        if len(values) != kept:
            _log.warning("the saved local state is of another model; starting afresh")
            return LocalState(None, None)
        plan, optimizer = task.plan, None
        vectors = tuple(map(_vector, entry.vectors))
        size = manifest.trained.stop - manifest.trained.start
        fits = [len(vector) for vector in vectors] == [size] * state_vectors_count(plan)
        same = entry.run_id == task.run_id and entry.optimizer == plan.optimizer
        if plan.optimizer_state == "kept" and same and fits:
            optimizer = OptimizerState(entry.steps, vectors)
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
        entry = _Entry(
            version=1,
            number=0 if begun_with is None else begun_with.number + 1,
            run_id=task.run_id,
            round_id=task.round_id,
            values=encode_vector(values, "f32"),
            optimizer=task.plan.optimizer if kept else "",
            steps=optimizer.steps if kept else 0,
            vectors=tuple(encode_vector(v, "f32") for v in optimizer.vectors) if kept else (),
        )
        content = msgspec.msgpack.encode(entry)
        with disk_errors_of(self._folder):
            make_folder(other.parent)
            for folder in self._folder.iterdir():
                if folder != other.parent:
                    shutil.rmtree(folder)
        write_atomically(other, hashlib.sha256(content).digest() + content)

    def _begun_with(self, task: Task) -> tuple[_Entry | None, Path]:
        """The newest state of an earlier round, and the file that may be written."""
        folder = self._folder / task.bundle.digest
        paths = (folder / "0", folder / "1")
        earlier = [
            (entry.number, path, entry)
            for path in paths
            if (entry := _read(path)) is not None
            and not (entry.run_id == task.run_id and entry.round_id >= task.round_id)
        ]
        if not earlier:
            return None, paths[0]
        _, newest, entry = max(earlier, key=lambda found: found[0])
        return entry, paths[1] if newest == paths[0] else paths[0]


def _read(path: Path) -> _Entry | None:
    """None if there is none, or none that is intact."""
    with disk_errors_of(path.parent):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
    content = raw[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() == raw[:_DIGEST_BYTES]:
        try:
            return msgspec.msgpack.decode(content, type=_Entry)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    _log.warning("a saved local state is damaged; training goes on without it")
    return None


def _vector(raw: bytes) -> Vector:
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<f4").astype(np.float32)
