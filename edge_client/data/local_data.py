"""The local data as training wants them: of today, in memory once, and never half of a file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from edge_client.data import WRITING, Loaded, NotNowError, Problems, Source, open_source
from edge_client.data.config import DataConfig
from edge_client.data.rows import LocalDataset
from fedtide.bundle import Bundle
from fedtide.errors import DataError

_log = logging.getLogger(__name__)

SETTLE_S = 60.0
"""Data that could be read before and no longer can are taken for half written for so long."""
PAUSE_S, TRIES = 1.0, 5
"""Data that change while they are read are read again, so often and after such pauses."""


class _Held(NamedTuple):
    digest: str
    stamp: Hashable
    dataset: LocalDataset


class LocalData:
    """See the module. Used by one thread; `examples_count` may be read by any."""

    def __init__(self, config: DataConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.examples_count = 0
        self._config, self._clock = config, clock
        self._source: Source | None = None
        self._held: _Held | None = None
        self._good = False
        self._failing: tuple[Hashable, float] | None = None

    def forget(self) -> None:
        """Give the memory back; they are read again when they are needed."""
        self._held = None

    def current(self, bundle: Bundle, pause: Callable[[float], object]) -> LocalDataset:
        """The data of now, read again if they have changed; `pause(seconds)` waits.

        Raises:
            NotNowError: not now; why may leave this device.
            DataError: they cannot be used; why is for this device's log alone.
        """
        try:
            return self._current(bundle, pause)
        except NotNowError:
            raise
        except DataError:
            self.examples_count = 0
            raise

    def _current(self, bundle: Bundle, pause: Callable[[float], object]) -> LocalDataset:
        if self._source is None:
            self._source = open_source(self._config)
        for _ in range(TRIES):
            stamp = self._source.stamp()
            if self._held is not None and self._held[:2] == (bundle.digest, stamp):
                return self._enough(self._held.dataset)
            error: DataError
            try:
                loaded = self._load(self._source, bundle)
            except NotNowError as exc:
                error = exc
            except DataError as exc:
                error = exc
                if self._source.stamp() == stamp:
                    break
            else:  # too few are no reason to read again
                return self._take(_Held(bundle.digest, stamp, loaded.dataset), loaded.notes)
            pause(PAUSE_S)
        return self._meanwhile(bundle, stamp, error)

    def _load(self, source: Source, bundle: Bundle) -> Loaded:
        """Without what was held before, if both do not fit."""
        try:
            try:
                return source.load(bundle.manifest, Problems())
            except MemoryError:
                if self._held is None:
                    raise
                self._held = None
            return source.load(bundle.manifest, Problems())
        except MemoryError as exc:
            raise DataError(
                f"the examples of {self._config.where} do not fit into memory",
                hint="data.examples_max limits how many are used",
            ) from exc

    def _take(self, held: _Held, notes: tuple[str, ...]) -> LocalDataset:
        count = len(held.dataset.training.x)
        for note in notes:
            _log.info("local data: %s", note)
        if self._good and count != self.examples_count:
            change = "grew" if count > self.examples_count else "shrank"
            level = logging.INFO if change == "grew" else logging.WARNING
            before = self.examples_count
            _log.log(level, "the local data %s from %d to %d examples", change, before, count)
        self._held, self._good, self._failing = held, True, None
        self.examples_count = count
        return self._enough(held.dataset)

    def _enough(self, dataset: LocalDataset) -> LocalDataset:
        count, least = len(dataset.training.x), self._config.examples_min
        if count < least:
            raise NotNowError(f"{count:,} examples to train on, at least {least:,} are needed here")
        return dataset

    def _meanwhile(self, bundle: Bundle, stamp: Hashable, error: DataError) -> LocalDataset:
        """They cannot be read now: what was read last, if that may be because they are written."""
        now_s = self._clock()
        if self._failing is None or self._failing[0] != stamp:
            self._failing = stamp, now_s
        passing = isinstance(error, NotNowError)
        if not passing and not (self._good and now_s - self._failing[1] < SETTLE_S):
            self._held = None
            raise error
        if self._held is None or self._held.digest != bundle.digest:
            _log.warning("the local data cannot be read yet: %s", error.args[0])
            raise error if passing else NotNowError(WRITING)
        _log.warning("the local data are used as they were, for now: %s", error.args[0])
        return self._enough(self._held.dataset)
