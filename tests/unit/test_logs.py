"""Log lines: what others send cannot write lines of its own, nor move the cursor."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

from fedtide.logs import LineFormatter, escaped

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
