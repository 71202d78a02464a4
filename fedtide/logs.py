"""Log lines on stderr, the same for every long-running command."""

from __future__ import annotations

import argparse
import logging
import sys
from types import TracebackType

WARNINGS_MAX, LINES_MAX = 100, 1_000
"""Lines in a minute from one place in the code: warnings and errors, and all others."""
MINUTE_S = 60.0


class LineFormatter(logging.Formatter):
    """One line for a message, whatever is in it: much of a log is what others have sent.

    What a terminal would not print as a character is escaped. Tracebacks keep their lines, each
    indented, so that none looks like a message of its own.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line."""
        return escaped(super().formatMessage(record))

    def formatException(  # noqa: N802 - logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """The traceback."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {escaped(line)}" for line in lines)


class _Minute:
    """What one place in the code has said since a point in time."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.lines = 0


class FloodGate(logging.Filter):
    """So many lines a minute from one place in the code: what others send must not fill a disk.

    What is left out is counted, and told with the next line from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._minutes: dict[tuple[str, int], _Minute] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is written."""
        place = (record.pathname, record.lineno)
        minute = self._minutes.setdefault(place, _Minute(record.created))
        lines_max = WARNINGS_MAX if record.levelno >= logging.WARNING else LINES_MAX
        # Also when the clock is set back.
        if not 0 <= record.created - minute.began_s < MINUTE_S:
            if minute.lines > lines_max:
                left_out = minute.lines - lines_max
                record.msg = f"{record.getMessage()} (and {left_out:,} lines like it, left out)"
                record.args = None
            self._minutes[place] = minute = _Minute(record.created)
        minute.lines += 1
        return minute.lines <= lines_max


def escaped(text: str) -> str:
    """`text` with everything unprintable as a Python escape: line ends, ESC, direction marks."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--verbose`."""
    parser.add_argument("--verbose", action="store_true", help="log every detail")


def start_logging(parsed: argparse.Namespace) -> None:
    """Write log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(FloodGate())
    level = logging.DEBUG if parsed.verbose else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
