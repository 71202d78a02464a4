"""Checks that an operator asks for: each a finding with what to do, and a deadline for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Literal

from msgspec import Struct

from fedtide.errors import FedtideError, denied

SECONDS = 14.0
"""For all checks together. A Raspberry Pi's SD card may need ten to import the runtime."""
Level = Literal["ok", "warning", "problem"]


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    level: Level
    what: str
    todo: str = ""
    """What to do next; empty where there is nothing to do."""


def ok(what: str) -> Finding:
    """All is well."""
    return Finding("ok", what)


def warning(what: str, todo: str = "") -> Finding:
    """It works, but not well, or not for long, or it could not be found out."""
    return Finding("warning", what, todo)


def problem(what: str, todo: str = "") -> Finding:
    """It does not work."""
    return Finding("problem", what, todo)


def failed(error: Exception) -> Finding:
    """A check ended with this error."""
    if isinstance(error, PermissionError):
        error = denied(error)
    if isinstance(error, FedtideError):
        return problem(str(error.args[0]), error.hint or "")
    return problem(f"a check failed: {type(error).__name__}: {error}", "this is a bug of fedtide")


Group = Callable[[], Iterator[Finding]]


class _Run:
    """A group of checks in a thread of its own, which nobody waits for longer than he likes."""

    def __init__(self, name: str, group: Group) -> None:
        self._name = name
        self._group = group
        self._found: SimpleQueue[Finding | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            for finding in self._group():
                self._found.put(finding)
        except Exception as exc:  # noqa: BLE001 - the next check may still tell more
            self._found.put(failed(exc))
        finally:
            self._found.put(None)

    def findings(self, until_s: float, seconds: float) -> Iterator[Finding]:
        """As they come."""
        last = ""
        while True:
            try:
                finding = self._found.get(timeout=max(0.0, until_s - time.monotonic()))
            except Empty:
                after = f" after {last!r}" if last else ""
                yield problem(
                    f"the checks of {self._name} did not end within {seconds:g} s{after}",
                    "a disk or a link hangs, or is very slow: look at it by hand, then ask again",
                )
                return
            if finding is None:
                return
            last = finding.what
            yield finding


def examine(groups: Sequence[tuple[str, Group]], seconds: float) -> Iterator[Finding]:
    """The findings of all groups, which run side by side, in the order of the groups."""
    until_s = time.monotonic() + seconds
    runs = [_Run(name, group) for name, group in groups]
    for run in runs:
        yield from run.findings(until_s, seconds)
