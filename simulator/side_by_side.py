"""Work on several things at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

import msgspec

from fedtide.errors import FedtideError, StateError
from simulator.forking import end_with_starter, start
from simulator.learning.answers import Failed, error_of

END_S = 5.0
"""For a process to end, before it is killed."""
T = TypeVar("T")


def usable_cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def side_by_side(work: Callable[[T], None], items: Sequence[T], at_once: int) -> Generator[T]:
    """Each item as soon as its work is done; forked processes, `at_once` of them.

    Whatever ends it early, closing it too, ends the processes: `work` gets a KeyboardInterrupt.
    Where this process is killed, they end at once.

    Raises:
        FedtideError: what `work` raised.
        StateError: a process has ended without a word.
    """
    context = multiprocessing.get_context("fork")
    waiting = deque(items)
    running: dict[Connection, tuple[T, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                ours, theirs = context.Pipe(duplex=False)
                item = waiting.popleft()
                others = [*running, ours]
                process = context.Process(target=_alone, args=(work, item, theirs, others))
                running[ours] = item, process
                start(process)
                theirs.close()  # so that it is the process's end alone
            for ours in [one for one in wait(list(running)) if isinstance(one, Connection)]:
                _heard(ours, running[ours][1])
                yield running.pop(ours)[0]
    finally:
        _end([process for _, process in running.values() if process.pid is not None])


def _heard(connection: Connection, process: BaseProcess) -> None:
    """Its end: an error in words, or nothing and exit code 0."""
    try:
        raise error_of(msgspec.msgpack.decode(connection.recv_bytes(), type=Failed))
    except EOFError:
        process.join(END_S)
    if process.exitcode != 0:
        raise StateError(
            f"a process at work (process {process.pid}) ended with exit code {process.exitcode}, "
            "expected 0 (a negative one is a signal's)",
            hint="-9 is often the system's answer to memory running out: try fewer --workers; "
            "the same command goes on where it was",
        )


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(END_S)
        if process.is_alive():
            process.kill()
            process.join()


def _alone(
    work: Callable[[T], None], item: T, connection: Connection, others: list[Connection]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter says when to stop
    signal.signal(signal.SIGTERM, _stop)
    for other in others:  # inherited: with them open a pipe would outlive the starter
        other.close()
    end_with_starter(connection)
    try:
        work(item)
    except FedtideError as exc:
        failed = Failed(str(exc), exc.exit_code)
        connection.send_bytes(msgspec.msgpack.encode(failed))
    except KeyboardInterrupt:
        os._exit(130)  # who asked for it needs no traceback


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the first
    raise KeyboardInterrupt
