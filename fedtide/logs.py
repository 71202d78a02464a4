"""The log on stderr, the same for every long-running command: lines for people, or JSON objects.

Where stderr is the journal's (systemd), each line begins with its priority, `<4>`, and has no time:
the journal has both, and `journalctl -p warning` finds it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType

from fedtide.errors import ConfigError

FORMATS = ("lines", "json")
FORMAT_VARIABLE = "FEDTIDE_LOG_FORMAT"
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

WARNINGS_MAX, LINES_MAX = 100, 1_000
"""Lines in a minute from one place in the code: warnings and errors, and all others."""
MINUTE_S = 60.0


class LineFormatter(logging.Formatter):
    """One line for a message, whatever is in it: much of a log is what others have sent.

    What a terminal would not print as a character is escaped. Tracebacks keep their lines, each
    indented, so that none looks like a message of its own.
    """

    def __init__(self, *, journal: bool = False) -> None:
        line = "%(message)s" if journal else "%(asctime)s %(levelname)-7s %(message)s"
        super().__init__(line, datefmt="%H:%M:%S")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines."""
        text = super().format(record)
        if not self._journal:
            return text
        return "\n".join(f"{_priority(record)}{line}" for line in text.split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        """The traceback."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {escaped(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object for a message: `time` (UTC, ISO 8601), `level`, `logger`, `message`, and
    `exception`, the traceback, if there is one. Escaped as lines are: programs print what they read
    there."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": escaped(record.getMessage()),
        }
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            said["exception"] = "\n".join(map(escaped, lines))
        return (_priority(record) if self._journal else "") + json.dumps(said)


def _priority(record: logging.LogRecord) -> str:
    """As syslog numbers them, in the way that systemd reads (sd-daemon(3))."""
    for level, number in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4)):
        if record.levelno >= level:
            return f"<{number}>"
    return "<6>" if record.levelno >= logging.INFO else "<7>"


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
    """Declare `--verbose` and `--log-format`."""
    parser.add_argument("--verbose", action="store_true", help="log every detail")
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        help=f"of the log: lines for people, or one JSON object each; else ${FORMAT_VARIABLE}, "
        "else lines",
    )


def start_logging(parsed: argparse.Namespace) -> None:
    """Write the log to stderr.

    Raises:
        ConfigError: the environment names a format that does not exist.
    """
    kind = parsed.log_format or os.environ.get(FORMAT_VARIABLE) or FORMATS[0]
    if kind not in FORMATS:
        known = " or ".join(map(repr, FORMATS))
        raise ConfigError(
            f"the environment's {FORMAT_VARIABLE} is {kind!r}: expected {known}",
            hint=f"set it to one of these, or remove it: {FORMATS[0]} is the default",
        )
    formatter = JsonFormatter if kind == "json" else LineFormatter
    journal = _stderr_is_the_journals()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(journal=journal))
    handler.addFilter(FloodGate())
    level = logging.DEBUG if parsed.verbose else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if journal or kind == "json":
        sys.excepthook = _log_defect
        threading.excepthook = _log_threads_defect
        logging.captureWarnings(True)


def _log_defect(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    logging.getLogger("fedtide").critical("a defect: %s", error, exc_info=(kind, error, trace))


def _log_threads_defect(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None:
        _log_defect(told.exc_type, told.exc_value, told.exc_traceback)


def log_end(message: str) -> bool:
    """Log why a command ends. False: nothing but people reads the log, if there is one."""
    if sys.excepthook is not _log_defect:
        return False
    logging.getLogger("fedtide").error("%s", "; ".join(filter(None, message.split("\n"))))
    return True


def _stderr_is_the_journals() -> bool:
    """As systemd.exec(5) says: a child whose stderr goes elsewhere inherits the variable, too."""
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something without one
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
