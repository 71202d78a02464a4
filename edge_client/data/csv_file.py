"""A CSV file, UTF-8: one example a line, read line by line."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Hashable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from edge_client.data import Loaded, Problems, file_stamp
from edge_client.data.collector import Collector
from edge_client.data.config import DataConfig
from edge_client.data.table import Table, chosen_columns
from fedtide.dataset import open_data
from fedtide.errors import DataError
from fedtide.manifest import Manifest

_LINE_CHARS_MAX = 1 << 24
_COUNTED_BYTES = 1 << 20
_LABELS_SHOWN = 50
_UNFINISHED = "the last line has no end yet: it is left out"


class CsvFile:
    """See the module."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self._config, self._path = config, config.path

    def stamp(self) -> Hashable:
        """The file's."""
        return file_stamp(self._path)

    def describe(self) -> dict[str, Any]:
        """Columns, rows, and what stands in the label's column."""
        with _Reading(self._path, self._config) as rows:
            _, labels = chosen_columns(self._config, rows.names)
            seen = Counter(
                ", ".join(fields[label] for label in labels)
                for fields, _ in rows
                if len(fields) == len(rows.names)
            )
            facts: dict[str, Any] = {"columns": list(rows.names), "rows": rows.count}
            facts["labels"] = dict(seen.most_common(_LABELS_SHOWN))
            if rows.unfinished:
                facts["unfinished"] = _UNFINISHED
        return facts

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """Every line, or those that are used, in memory."""
        config = self._config
        with _Reading(self._path, config) as rows:
            collector = Collector(config, manifest, _lines(self._path), problems)
            table = Table(config, manifest, rows.names, collector, problems)
            for fields, place in rows:
                if len(fields) != len(rows.names):
                    problems.add(
                        DataError(
                            f"{place} has {len(fields):,} fields, {len(rows.names):,} are expected",
                            hint=f"data.delimiter is {rows.delimiter!r}",
                        )
                    )
                    continue
                table.add(fields, place)
            table.end()
            if rows.unfinished:
                collector.note(_UNFINISHED)
        return collector.finish()


class _Reading:
    """The rows of an open file, with the place of each."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self._path = path
        self._header = config.header
        self.delimiter = config.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
        self.names: tuple[str, ...] = ()
        self.unfinished = False
        self.count = 0

    def __enter__(self) -> _Reading:
        self._file = TextIOWrapper(open_data(self._path), encoding="utf-8-sig", newline="")
        lines = _whole_lines(self._file, self)
        self._reader = csv.reader(
            lines, delimiter=self.delimiter, skipinitialspace=True, strict=True
        )
        self._first: list[str] | None = None
        try:
            first = self._next()
        except BaseException:
            self._file.close()
            raise
        if first is None:
            self._file.close()
            also = f" ({_UNFINISHED})" if self.unfinished else ""
            raise DataError(f"{str(self._path)!r} has no examples: it is empty{also}")
        if self._header:
            self.names = tuple(name.strip() for name in first)
        else:
            self.names, self._first = tuple(map(str, range(1, len(first) + 1))), first
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[list[str], str]]:
        fields = self._first if self._first is not None else self._next()
        while fields is not None:
            self.count += 1
            yield fields, f"line {self._reader.line_num} of {str(self._path)!r}"
            fields = self._next()

    def _next(self) -> list[str] | None:
        """The next row that is not blank; None: there is none.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return next((fields for fields in self._reader if fields), None)
        except UnicodeDecodeError as exc:
            raise DataError(
                f"{str(self._path)!r} is not UTF-8 after line {self._reader.line_num}: {exc}",
                hint="save it as UTF-8",
            ) from exc
        except (csv.Error, OSError, ValueError) as exc:
            raise DataError(
                f"line {self._reader.line_num + 1} of {str(self._path)!r} cannot be read: {exc}",
                hint=f"fields are separated by {self.delimiter!r} and may stand in double quotes",
            ) from exc


def _whole_lines(file: IO[str], rows: _Reading) -> Iterator[str]:
    """All lines but a last one that does not end: who writes it may not be done."""
    while line := file.readline(_LINE_CHARS_MAX):
        if line[-1] in "\r\n":
            yield line
        elif len(line) == _LINE_CHARS_MAX:
            raise ValueError(f"it is longer than {_LINE_CHARS_MAX:,} characters")
        else:
            rows.unfinished = True


def _lines(path: Path) -> int:
    """At least as many as there are rows."""
    counts = [0, 0]
    try:
        with open_data(path) as file:
            while part := file.read(_COUNTED_BYTES):
                counts = [counts[0] + part.count(b"\n"), counts[1] + part.count(b"\r")]
    except OSError as exc:
        raise DataError(f"data file {str(path)!r} cannot be read: {exc}") from exc
    return max(counts)
