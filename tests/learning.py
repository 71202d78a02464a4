"""Small real learning for tests: blobs of random points, a tiny bundle, few examples a device."""

from __future__ import annotations

import os
import select
import threading
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedtide.bundle import Bundle, open_bundle_dir
from fedtide.dataset import Examples
from fedtide.errors import DataError
from fedtide.plan import Plan
from simulator.learning.learner import Learner
from simulator.learning.models import Models, Part
from simulator.learning.partitions import iid
from simulator.learning.workers import Workers
from tests.bundles import build

PLAN = Plan(epochs=2, batch_size=10, learning_rate=0.1)


class Points:
    """Two classes of points that a line separates: x float32[n, 8], y int64[n]."""

    name = "points"
    about = "points"
    groups = None

    def __init__(self, bundle: Bundle, count: int = 400) -> None:
        rng = np.random.default_rng(7)
        self._x = rng.normal(size=(count + 600, *bundle.manifest.inputs.shape)).astype(np.float32)
        classes = bundle.manifest.classes
        assert classes is not None
        direction = rng.normal(size=(self._x[0].size, classes))
        labels = (self._x.reshape(len(self._x), -1) @ direction).argmax(axis=1).astype(np.int64)
        self.labels = labels[:count]
        self.test = Examples(self._x[count:], labels[count:])
        self._x = self._x[:count]

    def __len__(self) -> int:
        return len(self._x)

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:
        return Examples(self._x[indices], self.labels[indices])


class Trouble(Points):
    """Of device 0 nothing is wrong; what is asked for of another raises its number's error."""

    ERRORS: ClassVar[dict[int, BaseException]] = {
        1: DataError("example 3 is not there"),
        2: ZeroDivisionError("float division by zero"),
        3: MemoryError(),
        4: KeyboardInterrupt(),
        5: SystemExit(3),
    }

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:
        if (first := int(indices[0])) in self.ERRORS:
            raise self.ERRORS[first]
        return super().examples(indices)


def troubled_learner() -> Learner:
    """Device k of 6 has the error k."""
    bundle = open_bundle_dir(build("tiny_mlp"))
    return Learner(bundle, Trouble(bundle), [np.arange(10) + 10, *np.arange(1, 6)[:, None]])


class Endless(Points):
    """Training never ends; a line on the standard output says that it began."""

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:
        os.write(1, b"begun\n")
        threading.Event().wait()
        raise AssertionError


def endless_learner() -> Learner:
    bundle = open_bundle_dir(build("tiny_mlp"))
    return Learner(bundle, Endless(bundle), [np.arange(10)])


class Told(Points):
    """What begins is told through a pipe: `t` to train, `e` to evaluate. Device 0 then waits until
    the last one has begun, too."""

    def __init__(self, bundle: Bundle, last: int) -> None:
        self.reads, self._writes = os.pipe()
        self._go, self._went = os.pipe()
        self._last = last
        super().__init__(bundle)

    @property
    def test(self) -> Examples:
        os.write(self._writes, b"e")
        return self._test

    @test.setter
    def test(self, examples: Examples) -> None:
        self._test = examples

    def examples(self, indices: NDArray[np.int64], seed: int = 0) -> Examples:
        os.write(self._writes, b"t")
        device = int(indices[0])
        if device == self._last:
            os.write(self._went, b"!")
        if device == 0 and not select.select([self._go], [], [], 30)[0]:
            raise DataError("device 0 waited in vain for the last one")
        return super().examples(indices)


def told_learner(devices: int) -> tuple[Learner, Told]:
    """Device k has the example k."""
    bundle = open_bundle_dir(build("tiny_mlp"))
    data = Told(bundle, devices - 1)
    return Learner(bundle, data, list(np.arange(devices)[:, None])), data


def tiny_learner(devices: int = 8) -> Learner:
    bundle = open_bundle_dir(build("tiny_mlp"))
    data = Points(bundle)
    return Learner(bundle, data, iid(len(data), devices, seed=1))


def models_of(workers: Workers, **settings: Any) -> Models:
    learner = tiny_learner()
    return Models(learner.bundle, workers, learner.test_batches, **settings)


def rounds(models: Models, first: int, last: int) -> None:
    for version in range(first, last + 1):
        parts = [Part(device, PLAN, version - 1) for device in (version % 8, (version + 3) % 8)]
        models.advance(version, parts)
    models.settle()
