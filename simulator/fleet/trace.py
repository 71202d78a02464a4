"""A trace of when devices are on: CSV with the columns device, from_s, until_s.

Seconds since the start; devices are numbered from 0, without gaps. A row that cannot be meant is
an error that names its line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fedtide.errors import ConfigError

Interval = tuple[int, int]
"""On from the first millisecond, inclusive, until the second, exclusive."""
HINT = (
    'a first line "device,from_s,until_s", then a row for each time that a device is on; '
    'docs/simulate.md, "Traces"'
)
COLUMNS = ["device", "from_s", "until_s"]
SECONDS_MAX = 1e9


class _Row(NamedTuple):
    from_ms: int
    until_ms: int
    line: int


def read_trace(path: Path, devices: int, repeat_s: float | None) -> list[list[Interval]]:
    """The intervals of each device in the trace, ascending; what touches is two intervals.

    Raises:
        ConfigError: it cannot be read, or a row is wrong: not three values, not a number, a
            device that the fleet has not, an end that is not after its beginning or is after
            `repeat_s`, an overlap, a device number that is left out.
    """
    try:
        return _read(path, f"trace {str(path)!r}", devices, repeat_s)
    except ConfigError as exc:
        exc.hint = HINT
        raise


def _read(path: Path, where: str, devices: int, repeat_s: float | None) -> list[list[Interval]]:
    found: dict[int, list[_Row]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for device, row in _rows(lines, where, devices, repeat_s):
                found.setdefault(device, []).append(row)
    except OSError as exc:
        raise ConfigError(f"{where} cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise ConfigError(f"{where} is not CSV: {exc}") from exc
    if not found:
        raise ConfigError(f"{where} has no rows, expected {','.join(COLUMNS)} and a row or more")
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        raise ConfigError(
            f"{where} has no row of device {missing}, though one of device {max(found)}: "
            "expected numbers from 0 without gaps"
        )
    return [_ordered(found[number], number, where) for number in range(len(found))]


def _rows(
    lines: Iterator[str], where: str, devices: int, repeat_s: float | None
) -> Iterator[tuple[int, _Row]]:
    reader = csv.reader(lines)
    header = next(reader, [])
    if [name.strip() for name in header] != COLUMNS:
        raise ConfigError(
            f"{where}, line 1: the columns are {','.join(header)!r}, expected {','.join(COLUMNS)!r}"
        )
    for cells in reader:
        at = f"{where}, line {reader.line_num}"
        if len(cells) != len(COLUMNS) or not all(cell.strip() for cell in cells):
            raise ConfigError(f"{at} is {','.join(cells)!r}, expected {','.join(COLUMNS)}")
        device = _number(cells[0], "device", at)
        if device != int(device) or device >= devices:
            raise ConfigError(
                f"{at}: device is {cells[0].strip()!r}, expected a whole number below "
                f"{devices}, fleet.devices"
            )
        from_s, until_s = _number(cells[1], "from_s", at), _number(cells[2], "until_s", at)
        row = _Row(round(from_s * 1_000), round(until_s * 1_000), reader.line_num)
        if row.until_ms <= row.from_ms:
            raise ConfigError(f"{at}: until_s is {until_s:g}, expected more than from_s {from_s:g}")
        if repeat_s is not None and until_s > repeat_s:
            raise ConfigError(
                f"{at}: until_s is {until_s:g}, expected at most repeat_s {repeat_s:g}"
            )
        yield int(device), row


def _number(cell: str, column: str, at: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not 0 <= number <= SECONDS_MAX:
        raise ConfigError(
            f"{at}: {column} is {cell.strip()!r}, expected a number from 0 to {SECONDS_MAX:g}"
        )
    return number


def _ordered(rows: list[_Row], device: int, where: str) -> list[Interval]:
    """By time.

    Raises:
        ConfigError: two of them overlap.
    """
    rows = sorted(rows)
    for earlier, later in pairwise(rows):
        if later.from_ms < earlier.until_ms:
            raise ConfigError(
                f"{where}, line {later.line}: device {device} is on from "
                f"{later.from_ms / 1_000:g} s, expected "
                f"{earlier.until_ms / 1_000:g} s or later: it overlaps line {earlier.line}"
            )
    return [(row.from_ms, row.until_ms) for row in rows]
