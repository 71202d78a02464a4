"""Log lines: what others send cannot write lines of its own, nor move the cursor."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedtide.logs import LINES_MAX, MINUTE_S, WARNINGS_MAX, FloodGate, LineFormatter, escaped

JUNK = "no\n12:00:00 INFO    all is well\r\x1b[2J\x9b\u2028\u202e\udc80"
BEGIN = """
import argparse, logging
from fedtide.logs import start_logging
start_logging(argparse.Namespace(verbose=False, log_format=None))
"""
PROGRAM = (
    BEGIN
    + r"""
logging.info("alpha declines: %s", "no\n12:00:00 INFO    all is well\r\x1b[2J\x9b\u2028\u202e")
"""
)
STORY = f"""{BEGIN}
log = logging.getLogger("coordinator.service")
log.info("alpha declines: %s", {JUNK!r})
log.warning("gone – 潮汐")
try:
    raise ValueError({JUNK!r})
except ValueError:
    log.exception("it failed")
import threading, warnings
thread = threading.Thread(target=lambda: 1 // 0)
thread.start()
thread.join()
warnings.warn("an old way")
for _ in range(300):
    log.warning("a flood")
raise TypeError("a bug")
"""
END = """
from unittest import mock
import logging
from fedtide import cli
from fedtide.errors import StateError

def run(parsed):
    from fedtide.logs import start_logging
    start_logging(parsed)
    raise StateError("the disk\x1b[2J is full", hint="free some")

with mock.patch("edge_client.command.run", run):
    raise SystemExit(cli.main(["client"]))
"""


def logged(program: str, folder: Path, *, journal: bool = False, **environment: str) -> list[str]:
    """The lines that a program logs, in an environment and with stderr as the journal's or not."""
    path = folder / "stderr"
    with path.open("wb") as stderr:
        stat = os.fstat(stderr.fileno())
        stream = f"{stat.st_dev}:{stat.st_ino + (not journal)}"
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **environment, "JOURNAL_STREAM": stream},
            stderr=stderr,
            check=False,
        )
    return path.read_text().removesuffix("\n").split("\n")


@pytest.mark.parametrize("journal", [False, True])
def test_json_is_an_object_on_each_line_whatever_is_in_it(tmp_path: Path, journal: bool) -> None:
    lines = logged(STORY, tmp_path, journal=journal, FEDTIDE_LOG_FORMAT="json")
    if journal:
        assert [line[:3] for line in lines[:3]] == ["<6>", "<4>", "<3>"]
        lines = [re.sub("^<[2-7]>", "", line) for line in lines]
    said: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert all(line.isascii() and line.isprintable() for line in lines)
    first, second, third, in_thread, warned, *flood, last = said
    assert "ZeroDivisionError" in in_thread["exception"]
    assert "an old way" in warned["message"]
    assert first["message"] == f"alpha declines: {escaped(JUNK)}"
    assert first["logger"] == "coordinator.service"
    assert (first["level"], second["level"], third["level"]) == ("INFO", "WARNING", "ERROR")
    age_s = (datetime.now(UTC) - datetime.fromisoformat(first["time"])).total_seconds()
    assert first["time"].endswith("Z")
    assert -1 < age_s < 60
    assert second["message"] == "gone – 潮汐"
    assert third["exception"].startswith("Traceback")
    assert all(line.isprintable() for line in third["exception"].split("\n"))
    assert len(flood) == WARNINGS_MAX
    assert last["level"] == "CRITICAL"
    assert "TypeError: a bug" in last["exception"]


def test_every_line_in_the_journal_has_its_priority_and_no_time(tmp_path: Path) -> None:
    lines = logged(STORY, tmp_path, journal=True)
    assert lines[0] == f"<6>alpha declines: {escaped(JUNK)}"
    assert lines[1] == "<4>gone – 潮汐"
    assert lines[2] == "<3>it failed"
    assert lines[3] == "<3>    Traceback (most recent call last):"
    assert lines[-1] == "<2>    TypeError: a bug"
    assert all(re.match(r"<[2-7]>", line) and line.isprintable() for line in lines)


def test_a_variable_that_means_another_stream_changes_nothing(tmp_path: Path) -> None:
    assert re.match(r"\d\d:\d\d:\d\d INFO    alpha", logged(STORY, tmp_path)[0])


def test_why_a_service_ended_is_in_its_log(tmp_path: Path) -> None:
    (line,) = logged(END, tmp_path, FEDTIDE_LOG_FORMAT="json")
    told = json.loads(line)
    assert (told["level"], told["logger"]) == ("ERROR", "fedtide")
    assert told["message"] == r"the disk\x1b[2J is full; hint: free some"
    (line,) = logged(END, tmp_path, journal=True)
    assert line == r"<3>the disk\x1b[2J is full; hint: free some"
    assert logged(END, tmp_path)[0] == r"fedtide: error: the disk\x1b[2J is full"


def test_a_format_that_does_not_exist_is_a_message(tmp_path: Path) -> None:
    first, *_ = logged(END, tmp_path, FEDTIDE_LOG_FORMAT="yaml")
    assert first == (
        "fedtide: error: the environment's FEDTIDE_LOG_FORMAT is 'yaml': expected 'lines' or 'json'"
    )


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
