"""The versions of a federation's model: reduction as the coordinator's, and a journal on disk.

A version is a function of the versions before it and of who counted, so an interrupted run goes on
from its last checkpoint: asked for the versions up to there again, `advance` only looks them up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from coordinator.aggregation import (
    Contribution,
    apply_delta,
    fednova_scales,
    weight_of,
    weighted_mean,
)
from coordinator.config import Weights
from coordinator.local_steps import steps_norm
from fedtide.bundle import Bundle, sha256_hex
from fedtide.errors import DamagedError, FedtideError, StateError
from fedtide.files import disk_errors_of, make_folder, write_atomically
from fedtide.measures import Metrics, add_up
from fedtide.messages import Encoding
from fedtide.plan import Plan
from fedtide.safetensors import read_initial_model
from fedtide.vectors import Vector, decode_vector, encode_vector, require_range
from simulator.learning.learner import Learned, Train
from simulator.learning.workers import Evaluation, Task, Workers

JOURNAL = "journal.jsonl"
CHECKPOINT_S = 20.0
"""Between checkpoints: so much work, at most, is done again."""


class Part(NamedTuple):
    """One update that counts."""

    device: int
    plan: Plan
    """As the device got it, its seed included."""
    base_version: int
    """Of the model that the device started from."""
    staleness: int = 0
    """Versions between that and the one it is added to."""


class Version(Struct, frozen=True):
    """A line of the journal."""

    version: int
    digest: str
    """SHA-256 of the model, encoded as f32."""
    examples: int = 0
    """Of all updates in it."""
    training_loss: float | None = None
    """Mean over the updates of their last epoch's loss, weighted by examples."""
    metrics: Metrics | None = None
    """On the test set."""
    worker_s: float = 0.0
    """Spent in training."""
    parts: str | None = None
    """SHA-256 of who counted, with which plan; None: not told, as in version 0."""


OnVersion = Callable[[Version], None]


class DivergedError(FedtideError):
    """What a device learned is not finite, or cannot be encoded; a real one would decline."""


class Models:
    """See the module. Version 0 is the bundle's initial model, or one that is given."""

    def __init__(
        self,
        bundle: Bundle,
        workers: Workers,
        test_batches: int,
        folder: Path | None = None,
        *,
        initial: Vector | None = None,
        versions_kept: int = 1,
        on_version: OnVersion = lambda _: None,
        due: Callable[[int], bool] = lambda _: True,
        weights: Weights = "examples",
        examples: Sequence[int] = (),
        encoding: Encoding = "f32",
    ) -> None:
        """`versions_kept`: how many of the newest versions can be started from.

        `due(version)`: whether a version is to be measured; of the others only digest and
        training loss are known.

        `initial`: float32[shared_count]. `on_version` hears of each version once it is measured,
        in order, those of an interrupted run included.

        `weights`: as `rounds.weights`; with "fednova", `examples` of each device must be known, and
        a plan's steps follow from them: its `training_ms_max` has become `steps_max`.

        `encoding`: of updates; what it costs is in the models.

        Raises:
            StateError: the folder holds models of another run, which began from another initial
                model, or cannot be used.
        """
        self._workers = workers
        self._test_batches = test_batches
        self._folder = folder
        self._kept = versions_kept
        self._on_version = on_version
        self._due = due
        self._weights = weights
        self._examples = examples
        self._encoding = encoding
        self._pending: tuple[Version, Evaluation] | None = None
        self.history: list[Version] = []
        self._saved_at_s = time.monotonic()
        if initial is None:
            initial = read_initial_model(bundle)[: bundle.manifest.shared_count]
        self._vectors: dict[int, Vector] = {0: initial}
        self.saved = 0
        """Versions up to this one are on disk."""
        if folder is not None:
            self._resume(folder, initial)
        if not self.history:
            self._measure(Version(0, _digest(initial)), initial)

    def advance(self, version: int, parts: Sequence[Part]) -> None:
        """Make `version` of the one before it and `parts`, in the order of aggregation.

        Raises:
            DivergedError: what was learned is not finite, or beyond the range of the encoding.
            StateError: the version on disk is made of other parts.
            FedtideError: of a worker.
        """
        who = sha256_hex(msgspec.json.encode(parts))
        if version <= self.saved:
            if self.history[version].parts not in {None, who}:
                raise StateError(
                    f"model {version} in {str(self._folder)!r} is made of other updates than those "
                    "that count now: it was learned by another version of fedtide",
                    hint="remove that folder, and it is learned again",
                )
            return
        before = self._vectors[version - 1]
        learned: list[Learned] = []
        delta = weighted_mean(self._contributions(parts, learned), len(before))
        model = apply_delta(before, delta)
        if not np.isfinite(model).all():
            raise DivergedError(f"model {version} has values that are not finite")
        self._vectors[version] = model
        examples = sum(one.examples for one in learned)
        loss = sum(one.losses[-1] * one.examples for one in learned) / max(examples, 1)
        seconds = sum(one.seconds for one in learned)
        made = Version(version, _digest(model), examples, loss, None, seconds, who)
        self._measure(made, model)
        # Only now: interrupted before, `save` has the version that is measured.
        for old in [v for v in self._vectors if v <= version - self._kept]:
            del self._vectors[old]
        if self._folder is not None and time.monotonic() - self._saved_at_s > CHECKPOINT_S:
            self.save()

    def vector(self, version: int) -> Vector:
        """float32[shared_count] of one of the newest versions."""
        return self._vectors[version]

    def settle(self) -> None:
        """Wait until the newest version is measured."""
        if self._pending is None:
            return
        version, evaluation = self._pending
        parts = [part for measured in evaluation.result() for part in measured.parts]
        self._pending = None
        self._record(msgspec.structs.replace(version, metrics=add_up(parts)))

    def save(self) -> None:
        """Make all versions up to the newest that is measured safe on disk.

        Also after an interruption at any moment of `advance`: the version under way is left out.

        Raises:
            StateError: the disk is full or failing.
        """
        if self._folder is None:
            return
        self.settle()
        newest = self.history[-1].version
        if newest not in self._vectors:
            return  # what is on disk is whole
        lines = b"".join(msgspec.json.encode(version) + b"\n" for version in self.history)
        kept = {v: _path(self._folder, v) for v in self._vectors if v <= newest}
        with disk_errors_of(self._folder):
            for version, path in kept.items():
                if version > self.saved:  # and of a file that is there nothing is known
                    write_atomically(path, encode_vector(self._vectors[version], "f32"))
            write_atomically(self._folder / JOURNAL, lines)
            for old in self._folder.glob("model-*.f32"):
                if old not in kept.values():
                    old.unlink()
        self.saved = newest
        self._saved_at_s = time.monotonic()

    def _contributions(
        self, parts: Sequence[Part], learned: list[Learned]
    ) -> Iterator[Contribution]:
        tasks = [
            Task(Train(part.device, part.plan), self._vectors[part.base_version]) for part in parts
        ]
        scales = self._scales(parts)
        for part, scale, done in zip(parts, scales, self._workers.train(tasks), strict=True):
            assert isinstance(done.reply, Learned)
            if not done.reply.finite:
                raise DivergedError(
                    f"device {part.device} learned values that are not finite, from model "
                    f"{part.base_version} with learning rate {part.plan.learning_rate:g}",
                    hint="try a lower learning rate",
                )
            learned.append(done.reply)
            delta = self._sent(part, done.vector)
            yield Contribution(done.reply.examples, delta, part.staleness, scale)

    def _sent(self, part: Part, delta: Vector) -> Vector:
        """What a coordinator has of a delta.

        Raises:
            DivergedError: a real device would decline, as it cannot be encoded.
        """
        try:
            if self._encoding == "f32":  # every bit of it
                require_range(delta, "f32")
                return delta
            return decode_vector(encode_vector(delta, self._encoding), self._encoding, len(delta))
        except OverflowError as exc:
            wider = "" if self._encoding == "f32" else ', or encoding = "f32"'
            raise DivergedError(
                f"device {part.device} learned from model {part.base_version} with learning rate "
                f"{part.plan.learning_rate:g} what it could not send: {exc}",
                hint=f"try a lower learning rate{wider}",
            ) from exc

    def _scales(self, parts: Sequence[Part]) -> list[float]:
        """As `coordinator.aggregate_job.scales_of`; simulated devices are honest: no bound."""
        if self._weights == "examples":
            return [1.0] * len(parts)
        counts = [self._examples[part.device] for part in parts]
        weights = [weight_of(n, part.staleness) for n, part in zip(counts, parts, strict=True)]
        amounts = [
            steps_norm(part.plan, part.plan.steps_for(n))
            for n, part in zip(counts, parts, strict=True)
        ]
        return fednova_scales(weights, amounts, [None] * len(parts), None)

    def _measure(self, version: Version, model: Vector) -> None:
        """Begin to; the version before has had a round's time for it."""
        self.settle()
        if self._due(version.version):
            self._pending = version, self._workers.begin_evaluation(model, self._test_batches)
        else:
            self._record(version)

    def _record(self, version: Version) -> None:
        self.history.append(version)
        self._on_version(version)

    def _resume(self, folder: Path, initial: Vector) -> None:
        path = folder / JOURNAL
        with disk_errors_of(folder):
            make_folder(folder)
            if not path.exists():
                return
            lines = path.read_bytes().splitlines()
            contents = {file: file.read_bytes() for file in folder.glob("model-*.f32")}
        try:
            history = [msgspec.json.decode(line, type=Version) for line in lines]
            began = history[0].digest
        except (msgspec.DecodeError, ValueError, IndexError) as exc:
            raise _damaged(folder, str(exc)) from exc
        # First: models of another bundle may have another length, too.
        if began != _digest(initial):
            raise StateError(
                f"the run in {str(folder)!r} began from another initial model: its digest is "
                f"{began}, now {_digest(initial)}",
                hint="its bundle was exported anew: go on with the earlier one, or begin anew in "
                "another folder with --out",
            )
        try:
            for file, content in contents.items():
                version = int(file.stem.removeprefix("model-"))
                if version <= history[-1].version:
                    self._vectors[version] = decode_vector(content, "f32", len(initial))
        except ValueError as exc:
            raise _damaged(folder, str(exc)) from exc
        newest = history[-1].version
        for known in history:
            vector = self._vectors.get(known.version)
            if vector is None and known.version < newest:
                continue  # nothing starts from it any more
            if vector is None or _digest(vector) != known.digest:
                raise _damaged(folder, f"model {known.version} is not the journal's")
        for known in history:
            self._record(known)
        self.saved = newest


def _damaged(folder: Path, why: str) -> DamagedError:
    return DamagedError(
        f"the models saved in {str(folder)!r} cannot be used: {why}",
        hint="remove the folder to begin anew",
    )


def _digest(model: Vector) -> str:
    return sha256_hex(np.ascontiguousarray(model, "<f4").tobytes())


def _path(folder: Path, version: int) -> Path:
    return folder / f"model-{version:07}.f32"
