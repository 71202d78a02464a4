"""Examples that come one after another, into arrays whose size is known before the first."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.data import Loaded, Problems
from edge_client.data.arrays import left_out
from edge_client.data.choice import Key, Places, divided, key_of
from edge_client.data.config import DataConfig
from fedtide.dataset import wrong_input, wrong_label
from fedtide.errors import DataError
from fedtide.manifest import Array, Manifest
from fedtide.memory_limit import available_bytes

AnyArray = NDArray[np.generic]
_log = logging.getLogger(__name__)
_SHARE = 0.5
"""Of the memory there is: the model and the system need some, too."""
_TELL_S = 10.0


def check_room(needed_bytes: int, source: str) -> None:
    """Whether so many bytes of examples may be in memory.

    Raises:
        DataError: they are too many.
    """
    most = int(_SHARE * available_bytes())
    if needed_bytes > most:
        raise DataError(
            f"the examples of {source} take {needed_bytes:,} bytes of memory, "
            f"at most {most:,} are used on this device",
            hint="data.examples_max limits how many are used (a function itself has to return "
            "fewer); a pair of .npy stays on the disk",
        )


class Collector:
    """See the module."""

    def __init__(
        self, config: DataConfig, manifest: Manifest, count_max: int, problems: Problems
    ) -> None:
        """At most `count_max` examples come.

        Raises:
            DataError: they would take too much memory.
        """
        self._config, self._manifest, self._problems = config, manifest, problems
        self._count_max = count_max
        self._notes: list[str] = []
        places = min(count_max, config.examples_max or count_max)
        sizes = [_example_bytes(array) for array in (manifest.inputs, manifest.labels)]
        check_room(places * sum(sizes), config.where)
        self._places = Places(config.examples_max, config.choice)
        self._x, self._y = (
            np.zeros((places, *array.shape), array.dtype)
            for array in (manifest.inputs, manifest.labels)
        )
        self._told_s = time.monotonic()

    def add(self, x: AnyArray, y: AnyArray | int, place: str) -> None:
        """One example, in shape and dtype of the manifest; `place` names it in the source.

        Raises:
            DataError: it is out of range or not finite (or `problems` keeps that).
        """
        if self._places.seen >= self._count_max:
            return  # it came after they were counted: next time
        labels = np.asarray(y, self._manifest.labels.dtype)
        error = self._wrong(x, labels, place)
        if error is not None:
            self._problems.add(error)
            return
        key: Key | None = None
        if self._config.choice == "sample" and self._config.examples_max is not None:
            key = key_of(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).data.cast("B"))
        where = self._places.take(key)
        if where is not None:
            self._x[where], self._y[where] = x, labels
        self._tell()

    def note(self, text: str) -> None:
        """Something was left out."""
        self._notes.append(text)

    def finish(self) -> Loaded:
        """All that came.

        Raises:
            DataError: none did.
        """
        count = len(self._places)
        if not count and not self._problems.count:
            also = f" ({'; '.join(self._notes)})" if self._notes else ""
            raise DataError(f"{self._config.where} has no examples{also}")
        if self._places.seen > count:
            self._notes.append(left_out(self._places.seen, self._config))
        dataset = divided(self._x[:count], self._y[:count], self._config.held_out_fraction)
        return Loaded(dataset, tuple(self._notes))

    def _wrong(self, x: AnyArray, y: AnyArray, place: str) -> DataError | None:
        for array in (x, y):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return DataError(f"{place} has a value that is not finite, or too large")
        wrong = wrong_input(self._manifest, x[None]) or wrong_label(self._manifest, y[None])
        return None if wrong is None else DataError(wrong.said(f" of {place}"), hint=wrong.hint)

    def _tell(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s > _TELL_S:
            self._told_s = now_s
            _log.info("reading local data: %d of %d", self._places.seen, self._count_max)


def class_indices(config: DataConfig, manifest: Manifest) -> dict[str, int]:
    """Numbers of the configured class names: their places in the list, the same on every device.

    Raises:
        DataError: the model has another number of classes, or none.
    """
    names = config.classes or ()
    labels: Any = manifest.labels
    if names and (manifest.classes not in (None, len(names)) or labels.dtype != "int64"):
        raise DataError(
            f"data.classes has {len(names):,} names, the model has "
            f"{'no' if manifest.classes is None else f'{manifest.classes:,}'} classes",
            hint="name every class of the model, in the same order on every device",
        )
    return {name: index for index, name in enumerate(names)}


def _example_bytes(array: Array) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize
