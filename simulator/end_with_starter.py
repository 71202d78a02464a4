"""A process that works for another one ends with it, however that one ended."""

from __future__ import annotations

import os
import select
import threading
from multiprocessing.connection import Connection


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
