"""Plain text for people: aligned columns and rounded numbers."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def table(rows: Sequence[Sequence[str]], *, indent: int = 2, right: int | None = None) -> str:
    """Rows of cells as aligned lines; cells from column `right` on are aligned to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if right is None or index < right else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def size(count_bytes: float) -> str:
    """`12.3 MB`; a megabyte is a million bytes."""
    for unit, factor in _UNITS:
        if count_bytes >= factor:
            return f"{count_bytes / factor:.1f} {unit}"
    return f"{count_bytes:.0f} B"


def duration(seconds: float) -> str:
    """`1.2 s`, `3.4 ms` or `56 µs`."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} µs"
