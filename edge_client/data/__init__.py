"""Local data: one interface, one implementation for each kind, one contract suite over all.

Nothing here is imported before it is needed: a client with an .npz starts without the rest.
"""

from __future__ import annotations

import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edge_client.data.config import DataConfig
from edge_client.data.rows import LocalDataset
from fedtide.dataset import A_FILE
from fedtide.errors import DataError
from fedtide.manifest import Manifest

FIRST_ROWS = 1_000
"""Are looked at by who has no time for all: a second on a small device, also of wide rows."""
WRITING = "the local data are just being written; not yet"


class NotNowError(DataError):
    """The data are not used now; the reason holds nothing of them and may leave the device."""


class NoExamplesError(DataError):
    """There are none, or none yet."""


class Problems:
    """What is wrong with single examples: the first one ends it, or `shown_max` are kept."""

    def __init__(self, shown_max: int = 0) -> None:
        self.shown: list[DataError] = []
        self.count = 0
        self._shown_max = shown_max

    def add(self, error: DataError) -> None:
        """One more; its example is left out.

        Raises:
            DataError: this one, where none is to be kept.
        """
        if not self._shown_max:
            raise error
        self.count += 1
        if len(self.shown) < self._shown_max:
            self.shown.append(error)


class Loaded(NamedTuple):
    """What `Source.load` returns."""

    dataset: LocalDataset
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


class Source(Protocol):
    """Where examples come from."""

    def stamp(self) -> Hashable:
        """Cheap, and another value whenever the data may have changed.

        Raises:
            DataError: there are none.
        """

    def describe(self, problems: Problems, rows_max: int | None = None) -> dict[str, Any]:
        """What can be seen without a model: names and counts, as JSON has them; of data that have
        to be read for it, in the first `rows_max` rows.

        Raises:
            DataError: the data cannot be read, or fit no model. Of single examples `problems` may
                keep it.
        """

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """The examples that are used, in the shapes and dtypes of the manifest.

        Raises:
            DataError: they cannot be read or do not fit: the first thing that is wrong, with its
                place and what to do about it. Of single examples `problems` may keep it.
            NotNowError: another program is just writing them.
        """


def open_source(config: DataConfig) -> Source:
    """The data that are configured; nothing is read yet.

    Raises:
        DataError: a package that reads them is missing.
    """
    match config.kind:
        case "npz":
            from edge_client.data.npz import NpzFile

            return NpzFile(config)
        case "npy":
            from edge_client.data.npy import NpyFiles

            return NpyFiles(config)
        case "csv":
            from edge_client.data.csv_file import CsvFile

            return CsvFile(config)
        case "images":
            from edge_client.data.images import ImageFolders

            return ImageFolders(config)
        case "sqlite":
            from edge_client.data.sqlite import SqliteQuery

            return SqliteQuery(config)
        case "function":
            from edge_client.data.function import UserFunction

            return UserFunction(config)


def file_stamp(path: Path, key: str = "path") -> Hashable:
    """Of one file or folder, which `[data]` names by `key`.

    Raises:
        DataError: there is none, or it may not be seen, or whoever reads it might wait for ever.
    """
    try:
        status = path.stat()
    except OSError as exc:
        raise DataError(
            f"there is no data file {str(path)!r}: {exc.strerror}", hint=f"correct [data] {key}"
        ) from exc
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise DataError(
            f"{str(path)!r} cannot be read as data: it is no regular file",
            hint=f"{A_FILE}; correct [data] {key}",
        )
    return status.st_ino, status.st_mtime_ns, status.st_size
