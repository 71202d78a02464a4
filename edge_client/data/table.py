"""Rows of fields as examples: which columns, what is missing, names of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.data import Problems
from edge_client.data.collector import Collector, class_indices
from edge_client.data.config import Column, DataConfig
from fedtide.config import shortened
from fedtide.errors import DataError
from fedtide.manifest import Array, Manifest

Field = str | int | float | bytes | None
AnyArray = NDArray[np.generic]
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_DIGITS_MAX = 30
"""Of a whole number; Python takes long over very long ones."""


_HINT = "data.input_columns names the columns that are used; data.classes numbers names of classes"


class FieldError(DataError):
    """A field is nothing that a model takes."""


class MissingError(FieldError):
    """A field is empty."""

    def __init__(self, place: str, name: str) -> None:
        super().__init__(
            f"{place}, column {name!r}: a value is missing",
            hint='data.missing = "skip" leaves such out',
        )


class Table:
    """Turns rows into examples and gives them to a collector."""

    def __init__(
        self,
        config: DataConfig,
        manifest: Manifest,
        names: Sequence[str],
        collector: Collector,
        problems: Problems,
    ) -> None:
        """`names` of the columns, in order.

        Raises:
            DataError: a column that is configured does not exist.
        """
        self._names, self._collector, self._problems = names, collector, problems
        self._manifest, self._skips = manifest, config.missing == "skip"
        self._classes = class_indices(config, manifest)
        self.inputs, self.labels = chosen_columns(config, names)
        self._missing = 0
        self._first_missing = ""

    def add(self, fields: Sequence[Field], place: str) -> None:
        """One row.

        Raises:
            DataError: a value is missing or wrong (or `problems` keeps that).
        """
        try:
            x = self._values(fields, self.inputs, self._manifest.inputs, place)
            y = self._label(fields, place)
        except DataError as exc:
            if self._skips and isinstance(exc, MissingError):
                self._missing += 1
                self._first_missing = self._first_missing or str(exc.args[0])
            else:
                self._problems.add(exc)
        else:
            self._collector.add(x, y, place)

    def end(self) -> None:
        """All rows have come: tell what was skipped."""
        if self._missing:
            self._collector.note(
                f"{self._missing:,} examples are skipped (data.missing); the first: "
                f"{self._first_missing}"
            )

    def _label(self, fields: Sequence[Field], place: str) -> AnyArray | int:
        if not self._classes:
            return self._values(fields, self.labels, self._manifest.labels, place)
        column = self.labels[0]
        field = fields[column]
        name = field.strip() if isinstance(field, str) else str(field)
        if name not in self._classes:
            if _is_missing(field):
                raise MissingError(place, self._names[column])
            raise DataError(
                f"{place}, column {self._names[column]!r}: {shortened(name)} is no class; "
                f"the first are {', '.join(map(repr, list(self._classes)[:5]))}",
                hint="data.classes names every class",
            )
        return self._classes[name]

    def _values(
        self, fields: Sequence[Field], columns: Sequence[int], expected: Array, place: str
    ) -> AnyArray:
        wanted = np.dtype(expected.dtype)
        count = math.prod(expected.shape)
        if wanted.kind == "f" and len(columns) == count:
            plain = plain_numbers([fields[column] for column in columns])
            if plain is not None:
                return plain.reshape(expected.shape)
        parts = _numbers(fields, columns, self._names, wanted, place)
        if len(parts) != count:
            shown = ", ".join(self._names[column] for column in columns[:5])
            raise DataError(
                f"{place} has {len(parts):,} values in {len(columns):,} columns ({shown}...), "
                f"the model expects {count:,} ({expected.dtype}{list(expected.shape)})",
                hint="data.input_columns and data.label_columns name the columns",
            )
        with np.errstate(over="ignore"):
            return np.array(parts, wanted).reshape(expected.shape)


def check_inputs(
    fields: Sequence[str], columns: Sequence[int], names: Sequence[str], place: str
) -> None:
    """What every model wants of the inputs in a row of texts.

    Raises:
        DataError: one is missing, or no finite number.
    """
    if plain_numbers([fields[column] for column in columns]) is None:
        _numbers(fields, columns, names, np.dtype(np.float32), place)


def chosen_columns(config: DataConfig, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Places of the input and label columns: as configured; else the last is the label.

    Raises:
        DataError: there is no such column, or more than one.
    """
    labels = [_place(column, names, config) for column in config.label_columns or (len(names),)]
    if config.input_columns is not None:
        inputs = [_place(column, names, config) for column in config.input_columns]
    else:
        inputs = [place for place in range(len(names)) if place not in labels]
    if not inputs:
        raise DataError(
            f"{config.where} has no column of inputs beside the label, only: "
            f"{', '.join(shortened(name) for name in names[:5])}",
            hint="data.delimiter is what separates the fields of a CSV; data.input_columns names "
            "the inputs",
        )
    both = sorted(set(inputs) & set(labels))
    if both:
        raise DataError(
            f"column {names[both[0]]!r} of {config.where} is both input and label: "
            "the model would be shown the answer"
        )
    return inputs, labels


def _place(column: Column, names: Sequence[str], config: DataConfig) -> int:
    if isinstance(column, int):
        if column > len(names):
            raise DataError(f"{config.where} has no column {column}, only {len(names)}")
        return column - 1
    places = [place for place, name in enumerate(names) if name == column]
    if len(places) != 1:
        raise DataError(
            f"{config.where} has {'more than one' if places else 'no'} column {column!r}; "
            f"it has: {', '.join(map(repr, names[:20]))}",
            hint="columns may be given by their number, from 1",
        )
    return places[0]


def _is_missing(field: Field) -> bool:
    return field is None or (isinstance(field, str) and field.strip().lower() in _MISSING)


def _numbers(
    fields: Sequence[Field],
    columns: Sequence[int],
    names: Sequence[str],
    wanted: np.dtype[Any],
    place: str,
) -> list[Any]:
    """All of these columns.

    Raises:
        DataError: one is missing, or no number.
    """
    parts: list[Any] = []
    for column in columns:
        field = fields[column]
        if _is_missing(field):
            raise MissingError(place, names[column])
        try:
            if isinstance(field, bytes):
                parts.extend(_vector(field, wanted))
            else:
                parts.append(_number(field, wanted))
        except ValueError as exc:
            hint = None if isinstance(field, bytes) else _HINT
            raise FieldError(f"{place}, column {names[column]!r}: {exc}", hint=hint) from None
    return parts


def _number(field: Field, wanted: np.dtype[Any]) -> float | int:
    """A field as a number.

    Raises:
        ValueError: it is none, or would have to be changed.
    """
    if wanted.kind == "i":
        whole = field
        if isinstance(field, str):
            text = field.strip()
            digits = text.removeprefix("-").removeprefix("+")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX):
                raise ValueError(f"{shortened(field)} is no whole number")
            whole = int(text)
        if not isinstance(whole, int) or not -(2**63) <= whole < 2**63:
            raise ValueError(f"{shortened(field)} is no whole number of 64 bits")
        return whole
    if isinstance(field, str) and ("_" in field or not field.isascii()):
        raise ValueError(f"{shortened(field)} is no number")
    try:
        number = float(field)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        comma = isinstance(field, str) and "," in field
        raise ValueError(
            f"{shortened(field)} is no number" + (" (decimals follow a point)" if comma else "")
        ) from None
    if not abs(number) <= _FLOAT32_MAX:
        raise ValueError(f"{shortened(field)} is not finite, or too large for float32")
    return number


def plain_numbers(fields: Sequence[Field]) -> AnyArray | None:
    """float32 of texts that are nothing but numbers, as nearly all are; else None: look closer."""
    try:
        text = "".join(fields)  # type: ignore[arg-type]
        if "_" in text or not text.isascii():
            return None
        numbers = np.array([float(field) for field in fields])  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if not (np.abs(numbers) <= _FLOAT32_MAX).all():
        return None
    return numbers.astype(np.float32)


def _vector(field: bytes, wanted: np.dtype[Any]) -> AnyArray:
    if len(field) % wanted.itemsize:
        raise ValueError(f"{len(field):,} bytes are no vector of {wanted}, little-endian")
    return np.frombuffer(field, wanted.newbyteorder("<"))
