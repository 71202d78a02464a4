"""Processes that work for this one: begun with care, and ended with it."""

from __future__ import annotations

import os
import select
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def start(process: BaseProcess) -> None:
    """Fork; whoever interrupts us meanwhile does so afterwards.

    Python runs hooks around a fork, and an error in one of them, a KeyboardInterrupt too, is
    printed and gone. The process itself must set its handlers first of all.
    """
    if threading.current_thread() is not threading.main_thread():
        process.start()  # interrupts come to the main thread
        return
    noted: list[int] = []
    before = [signal.signal(number, lambda got, _: noted.append(got)) for number in _INTERRUPTS]
    try:
        process.start()
    finally:
        for number, handler in zip(_INTERRUPTS, before, strict=True):
            signal.signal(number, handler)
    for got in noted:
        signal.raise_signal(got)


def end_with_starter(connection: Connection) -> None:
    """From now on end at once when nobody is left at the other end of this pipe.

    In the midst of work, too: nobody would hear its result, and what it holds (memory, the lock
    of a folder) is needed by who begins anew. No other process may have the other end open: close
    what was inherited first.
    """
    threading.Thread(target=_end_at_hang_up, args=(connection.fileno(),), daemon=True).start()


def _end_at_hang_up(pipe: int) -> None:
    hang_up = select.poll()
    hang_up.register(pipe, 0)  # a hang-up is told without being asked for
    hang_up.poll()
    os._exit(0)
