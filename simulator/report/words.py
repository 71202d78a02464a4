"""Figures as people read them."""

from __future__ import annotations

_BARS = "▁▂▃▄▅▆▇█"


def time_words(virtual_ms: float) -> str:
    """A duration with its unit."""
    seconds = virtual_ms / 1_000
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.3g} min"
    return f"{number_words(seconds / 3_600)} h"


def bytes_words(size_bytes: float) -> str:
    """A size with its decimal unit."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= 0.9995 * size:
            return f"{number_words(size_bytes / size)} {unit}"
    return f"{size_bytes:.0f} B"


def time_unit(longest_ms: float) -> tuple[float, str]:
    """For the axis of a plot: the unit's milliseconds, and its sign."""
    if longest_ms < 180_000:
        return 1_000, "s"
    return (60_000, "min") if longest_ms < 3 * 3_600_000 else (3_600_000, "h")


def bytes_unit(largest_bytes: float) -> tuple[float, str]:
    """The same for bytes."""
    return (1e9, "GB") if largest_bytes >= 1e9 else (1e6, "MB")


def number_words(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def share_words(share: float) -> str:
    """In percent; a little is not nothing."""
    return "under 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def plural(count: int, noun: str) -> str:
    """1 round, 2 rounds."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def sparkline(values: list[float], width: int) -> str:
    """The last values between 0 and 1 as small bars."""
    step = max(1, -(-len(values) // width))
    shown = values[::-1][::step][::-1]
    return "".join(_BARS[min(len(_BARS) - 1, int(value * len(_BARS)))] for value in shown)
