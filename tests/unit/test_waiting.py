"""Tests wait for what a process says: each way in which it does not say so is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.local import wait_for_log
from demo.processes import Child, ProcessError


@contextmanager
def running(folder: Path, code: str) -> Iterator[Child]:
    child = Child("it", [sys.executable, "-u", "-c", code], folder / "it.log")
    child.start()
    try:
        yield child
    finally:
        child.kill()


def test_the_last_word_of_a_process_counts(tmp_path: Path) -> None:
    with running(tmp_path, "print('earlier, done')") as child:
        child.wait(20)
        wait_for_log(child, "done", 20)


def test_a_process_that_ends_without_a_word_is_not_waited_for(tmp_path: Path) -> None:
    with (
        running(tmp_path, "print('early'); raise SystemExit(3)") as child,
        pytest.raises(ProcessError, match=r"(?s)code 3 before it said 'late'.*early"),
    ):
        wait_for_log(child, "late", 600)


def test_what_was_said_before_does_not_count(tmp_path: Path) -> None:
    with running(tmp_path, "pass") as child:
        (tmp_path / "it.log").write_text("up\n")
        with pytest.raises(ProcessError, match="before it said 'up'"):
            wait_for_log(child, "up", 600, after=6)
