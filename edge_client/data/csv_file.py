"""A CSV file, UTF-8: one example a line, read line by line."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Hashable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from edge_client.data import Loaded, NoExamplesError, Problems, file_stamp
from edge_client.data.collector import Collector
from edge_client.data.config import DataConfig
from edge_client.data.table import MissingError, Table, check_inputs, chosen_columns, plain_numbers
from fedtide.config import shortened
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

    def describe(self, problems: Problems, rows_max: int | None = None) -> dict[str, Any]:
        """Columns, rows, and what stands in the label's column."""
        with _Reading(self._path, self._config) as rows:
            inputs, labels = chosen_columns(self._config, rows.names)
            seen: Counter[str] = Counter()
            partly = ""
            for fields, place in rows.complete(problems):
                seen[", ".join(fields[label] for label in labels)] += 1
                try:
                    check_inputs(fields, inputs, rows.names, place)
                except DataError as exc:
                    if self._config.missing != "skip" or not isinstance(exc, MissingError):
                        problems.add(exc)
                if rows_max is not None and rows.count >= rows_max:
                    partly = f"only the first {rows.count:,} rows were looked at"
                    break
            if not rows.count:
                raise NoExamplesError(f"{self._config.where} has no examples")
            facts: dict[str, Any] = {"columns": list(rows.names), "rows": rows.count}
            facts["labels"] = dict(seen.most_common(_LABELS_SHOWN))
            if partly:
                facts["partly"] = partly
            if rows.doubt:
                facts["header"] = rows.doubt
            if rows.unfinished:
                facts["unfinished"] = _UNFINISHED
        return facts

    def load(self, manifest: Manifest, problems: Problems) -> Loaded:
        """Every line, or those that are used, in memory."""
        config = self._config
        with _Reading(self._path, config) as rows:
            collector = Collector(config, manifest, _lines(self._path), problems)
            table = Table(config, manifest, rows.names, collector, problems)
            for fields, place in rows.complete(problems):
                table.add(fields, place)
            table.end()
            if rows.doubt:
                collector.note(rows.doubt)
            if rows.unfinished:
                collector.note(_UNFINISHED)
        return collector.finish()


class _Reading:
    """The rows of an open file, with the place of each."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self._path = path
        self._header, self._classes = config.header, config.classes or ()
        columns = (*(config.input_columns or ()), *(config.label_columns or ()))
        self._named = any(isinstance(column, str) for column in columns)
        self.doubt = ""
        """Why the first line may be no header."""
        self.delimiter = config.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
        self.names: tuple[str, ...] = ()
        self.unfinished = False
        self.count = 0
        self._began = 0
        """The first line of the row that was read last."""

    def __enter__(self) -> _Reading:
        self._file = TextIOWrapper(
            open_data(self._path), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        lines = _whole_lines(self._file, self)
        self._reader = csv.reader(
            lines, delimiter=self.delimiter, skipinitialspace=True, strict=True
        )
        self._first: list[str] | None = None
        try:
            self._begin(self._next())
        except BaseException:
            self._file.close()
            raise
        return self

    def _begin(self, first: list[str] | None) -> None:
        if first is None:
            also = f" ({_UNFINISHED})" if self.unfinished else ""
            raise NoExamplesError(f"{str(self._path)!r} has no examples: it is empty{also}")
        if self._header is False:
            self.names, self._first = tuple(map(str, range(1, len(first) + 1))), first
            return
        self.names = tuple(name.strip() for name in first)
        if self._header is None and not self._named:
            self._require_names()

    def _require_names(self) -> None:
        """Nobody has said that the first line is a header.

        Raises:
            DataError: it looks like an example.
        """
        names = [name for name in self.names if name not in self._classes]
        numbers = [name for name in names if plain_numbers([name]) is not None]
        if numbers and numbers == names:
            raise DataError(
                f"the first line of {str(self._path)!r} has no names of columns, but an example's "
                "values",
                hint="if it is an example: data.header = false; if it names the columns: "
                "data.header = true",
            )
        if numbers:
            self.doubt = (
                f"the first line is taken for names of columns, though {shortened(numbers[0])} is "
                "a number: data.header = true says that it is right, false that it is an example"
            )

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[list[str], str]]:
        fields = self._first if self._first is not None else self._next()
        while fields is not None:
            self.count += 1
            yield fields, f"line {self._began} of {str(self._path)!r}"
            fields = self._next()

    def complete(self, problems: Problems) -> Iterator[tuple[list[str], str]]:
        """Those with as many fields as there are columns.

        Raises:
            DataError: one has not (or `problems` keeps that).
        """
        for fields, place in self:
            if len(fields) == len(self.names):
                yield fields, place
                continue
            problems.add(
                DataError(
                    f"{place} has {len(fields):,} fields, {len(self.names):,} are expected",
                    hint=f"data.delimiter is {self.delimiter!r}",
                )
            )

    def _next(self) -> list[str] | None:
        """The next row that is not blank; None: there is none.

        Raises:
            DataError: it cannot be read.
        """
        try:
            fields: list[str] | None = []
            while fields == []:
                self._began = self._reader.line_num + 1
                fields = next(self._reader, None)
            return fields
        except UnicodeEncodeError as exc:
            raise DataError(
                f"line {self._reader.line_num + 1} of {str(self._path)!r} is not UTF-8",
                hint="save it as UTF-8",
            ) from exc
        except (csv.Error, OSError, ValueError) as exc:
            raise DataError(
                f"line {self._began} of {str(self._path)!r} cannot be read: {exc}",
                hint=f"fields are separated by {self.delimiter!r} and may stand in double quotes",
            ) from exc


def _whole_lines(file: IO[str], rows: _Reading) -> Iterator[str]:
    """All lines but a last one that does not end: who writes it may not be done.

    Raises:
        UnicodeEncodeError: the next line is not UTF-8; what is not has been read as surrogates.
    """
    while line := file.readline(_LINE_CHARS_MAX):
        if line[-1] in "\r\n":
            if not line.isascii():
                line.encode()
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
