"""Log lines: what others send cannot write lines of its own, nor move the cursor."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

from fedtide.logs import LINES_MAX, MINUTE_S, WARNINGS_MAX, FloodGate, LineFormatter, escaped

PROGRAM = r"""
import argparse, logging
from fedtide.logs import start_logging
start_logging(argparse.Namespace(verbose=False))
logging.info("alpha declines: %s", "no\n12:00:00 INFO    all is well\r\x1b[2J\x9b\u2028\u202e")
"""


def test_a_message_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    line = done.stderr.decode().removesuffix("\n")
    assert line.isprintable()
    assert line.endswith(r"declines: no\n12:00:00 INFO    all is well\r\x1b[2J\x9b\u2028\u202e")


def test_a_traceback_keeps_its_lines_and_forges_none() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    log = logging.Logger("alone")
    log.addHandler(handler)
    try:
        raise ValueError("bad\n12:00:00 INFO    all is well\x1b[2J")
    except ValueError:
        log.exception("it failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("it failed")
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert any("12:00:00" in line for line in rest)


def test_letters_of_any_language_stay() -> None:
    assert escaped("Gezeiten – 潮汐 ±1e30") == "Gezeiten – 潮汐 ±1e30"
    assert escaped("a\tb\udc80") == r"a\tb\udc80"


def record_of(place: int, level: int, at_s: float) -> logging.LogRecord:
    record = logging.LogRecord("x", level, "file.py", place, "junk from %s", ("mallory",), None)
    record.created = at_s
    return record


def test_a_flood_of_lines_is_cut_and_what_is_left_out_is_told() -> None:
    gate = FloodGate()
    flood = [gate.filter(record_of(1, logging.WARNING, 5.0)) for _ in range(1_000)]
    assert sum(flood) == WARNINGS_MAX
    assert gate.filter(record_of(2, logging.WARNING, 5.0)), "another place in the code"
    later = record_of(1, logging.WARNING, 5.0 + MINUTE_S)
    assert gate.filter(later)
    assert later.getMessage() == "junk from mallory (and 900 lines like it, left out)"
    after = record_of(1, logging.WARNING, 6.0 + MINUTE_S)
    assert gate.filter(after)
    assert after.getMessage() == "junk from mallory"


def test_a_clock_that_is_set_back_silences_nobody() -> None:
    gate = FloodGate()
    for _ in range(1_000):
        gate.filter(record_of(1, logging.WARNING, 1e9))
    assert gate.filter(record_of(1, logging.WARNING, 5.0))


def test_lines_that_are_no_warnings_have_more_room() -> None:
    gate = FloodGate()
    assert sum(gate.filter(record_of(1, logging.INFO, 5.0)) for _ in range(3_000)) == LINES_MAX
