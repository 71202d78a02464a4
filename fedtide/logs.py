"""Log lines on stderr, the same for every long-running command."""

from __future__ import annotations

import argparse
import logging
import sys
from types import TracebackType


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
    level = logging.DEBUG if parsed.verbose else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
