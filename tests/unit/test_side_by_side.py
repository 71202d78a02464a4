"""Work side by side: what is done, what fails, and who is left when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtide.errors import DataError, FedtideError, StateError
from simulator.side_by_side import side_by_side

ROOT = Path(__file__).parents[2]


def test_everything_is_done_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        (tmp_path / f"{number}").touch(exist_ok=False)

    for at_once in (1, 2, 9):
        assert sorted(side_by_side(work, range(5), at_once)) == [0, 1, 2, 3, 4]
        assert len(list(tmp_path.iterdir())) == 5
        for path in tmp_path.iterdir():
            path.unlink()


def test_an_error_is_told() -> None:
    def work(_: int) -> None:
        raise DataError("example 3 is not there", hint="look for it")

    with pytest.raises(FedtideError, match=r"^example 3 is not there") as caught:
        list(side_by_side(work, [1, 2], 2))
    assert caught.value.exit_code == DataError.exit_code


def test_an_interruption_while_a_process_forks_is_not_lost() -> None:
    """Python prints what is raised in the hooks around a fork, and goes on."""
    armed = [True]

    def interrupt() -> None:
        if armed.pop():
            signal.raise_signal(signal.SIGINT)

    os.register_at_fork(after_in_parent=lambda: interrupt() if armed else None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits another
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(lambda _: None, [1, 2], 1))


def test_a_killed_process_is_a_message() -> None:
    def work(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(StateError, match="ended with exit code -9"):
        list(side_by_side(work, [1], 1))


ENDLESS = """
import os, signal, threading
from simulator.side_by_side import side_by_side
signal.signal(signal.SIGTERM, signal.default_int_handler)
def work(_):
    try:
        os.write(1, b"begun\\n")
        threading.Event().wait()
    finally:
        os.write(1, b"left in order\\n")
list(side_by_side(work, [1, 2, 3], 2))
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_the_end_of_the_starter_alone_ends_all(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as starter:
        assert starter.stdout is not None
        assert [starter.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        starter.send_signal(signal.Signals[how])
        # The output ends when the last process that could write to it has ended.
        try:
            rest, said = starter.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(starter.pid, signal.SIGKILL)  # what is left, so that no test waits for it
            raise
    in_order = how == "SIGTERM"
    assert rest == "left in order\n" * 2 * in_order
    assert said.count("Traceback") == in_order, "the starter's own"
