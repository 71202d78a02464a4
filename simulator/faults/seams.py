"""Where the simulated world takes the place of the real one, for as long as a simulation runs.

Nothing of production is changed: clocks, chance and the opening of databases are the standard
library's and are replaced there; durable steps are heard of by `fedtide.failpoints`. Reading a
clock is no error (logging does), it gives virtual time.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from coordinator import ledger, round_machine
from edge_client import session, session_machine
from edge_client.session_events import Heard
from fedtide import failpoints
from simulator.agenda import generator


class PowerCut(BaseException):
    """The process ends here, as by kill -9: no handler of production sees it."""


@contextmanager
def replaced(
    seed: int,
    now_ms: Callable[[], int],
    reached: Callable[[failpoints.Step], None],
    committed: Callable[[sqlite3.Connection], None],
    stepped: Callable[[str], None],
) -> Iterator[None]:
    """The world of one simulation.

    `reached` hears of each durable step, `committed` of each transaction after its commit,
    `stepped` of each transition of a machine by phase and event.
    """
    chance = generator(seed, "library")

    class Observed(sqlite3.Connection):
        """Tells of every commit."""

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *arguments)
            if sql == "COMMIT":
                committed(self)
            return cursor

    connect = sqlite3.connect

    def observed(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, factory=Observed, **options)

    round_step, session_step = round_machine.step, session_machine.step

    def round_stepped(state: Any, event: Any, *rest: Any) -> Any:
        stepped(f"round: {state.phase} x {type(event).__name__}")
        return round_step(state, event, *rest)

    def session_stepped(state: Any, event: Any, *rest: Any) -> Any:
        heard = f" {type(event.message).__name__}" if isinstance(event, Heard) else ""
        stepped(f"session: {state.phase} x {type(event).__name__}{heard}")
        return session_step(state, event, *rest)

    def drawn_bytes(count: int) -> bytes:
        return chance.randbytes(count)

    def drawn_uuid() -> uuid.UUID:
        return uuid.UUID(int=chance.getrandbits(128), version=4)

    random_state = random.getstate()
    random.seed(seed)
    logging_level = logging.root.manager.disable
    with ExitStack() as stack:
        for owner, name, substitute in (
            (time, "time", lambda: now_ms() / 1000),
            (time, "time_ns", lambda: now_ms() * 1_000_000),
            (time, "monotonic", lambda: now_ms() / 1000),
            (time, "monotonic_ns", lambda: now_ms() * 1_000_000),
            (uuid, "uuid4", drawn_uuid),
            (os, "urandom", drawn_bytes),
            (os, "fsync", lambda _: None),
            (sqlite3, "connect", observed),
            (ledger, "step", round_stepped),
            (session, "step", session_stepped),
        ):
            stack.enter_context(patch.object(owner, name, substitute))
        failpoints.listen(reached)
        try:
            yield
        finally:
            failpoints.listen(None)
            random.setstate(random_state)
            logging.disable(logging_level)
