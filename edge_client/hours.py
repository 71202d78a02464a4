"""Hours of the day in which a device may train: `22:00-06:00`, `sat,sun 00:00-24:00`. Pure.

A window over midnight belongs to the day on which it begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""As `time.localtime` counts them."""
DAY, WEEK = 24 * 60, 7 * 24 * 60
"""In minutes."""
_PATTERN = re.compile(r"(?:([a-z,-]+) )?(\d\d):(\d\d)-(\d\d):(\d\d)")


class Moment(NamedTuple):
    """Local time."""

    day: int
    """0 is Monday."""
    minute: int
    """Of the day."""


class Window(NamedTuple):
    """On these days from `start` until just before `end`, in minutes of the day."""

    days: frozenset[int]
    start: int
    end: int
    """Not after `start`: of the next day."""


def parse_window(text: str) -> Window:
    """The window that `text` means.

    Raises:
        ValueError: none.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise _wrong(text)
    days, *numbers = found.groups()
    hour, minute, end_hour, end_minute = map(int, numbers)
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if max(minute, end_minute) > 59 or start >= DAY or end > DAY or start == end:
        raise _wrong(text)
    return Window(frozenset(range(7)) if days is None else _days(days, text), start, end)


def _days(names: str, text: str) -> frozenset[int]:
    days: set[int] = set()
    for name in names.split(","):
        first, _, last = name.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise _wrong(text)
        start, end = DAYS.index(first), DAYS.index(last or first)
        days.update(day % 7 for day in range(start, end + 1 if end >= start else end + 8))
    return frozenset(days)


def _wrong(text: str) -> ValueError:
    return ValueError(
        f"hours has {text[:60]!r}, expected such as '22:00-06:00' or 'sat,sun 00:00-24:00', "
        f"days of {', '.join(DAYS)}"
    )


def is_open(windows: Sequence[Window], now: Moment) -> bool:
    """Whether one of the windows is open."""
    return any(_is_open(window, now) for window in windows)


def _is_open(window: Window, now: Moment) -> bool:
    if window.start < window.end:
        return now.day in window.days and window.start <= now.minute < window.end
    if now.minute >= window.start:
        return now.day in window.days
    return now.minute < window.end and (now.day - 1) % 7 in window.days


def opening(windows: Sequence[Window], now: Moment) -> str:
    """When the next window opens, in words; empty: there is none."""
    waits = [
        ((day - now.day) * DAY + window.start - now.minute) % WEEK
        for window in windows
        for day in window.days
    ]
    if not waits:
        return ""
    day, minute = divmod(now.day * DAY + now.minute + min(waits), DAY)
    at = f"{minute // 60:02}:{minute % 60:02}"
    return at if min(waits) < DAY else f"{at} on {DAYS[day % 7]}"
