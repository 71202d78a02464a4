"""How long the commands wait for a broker, and what it takes to make them give up.

A first connection that never comes, or is refused, is a wrong configuration: the command ends and
says so. Whoever has been connected once waits for as long as it takes.
"""

from __future__ import annotations

import logging
import time
from queue import Empty, SimpleQueue
from typing import Any

from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError
from fedtide.transport import Broken, Connected, Delivered, LinkEvent, Refused

_log = logging.getLogger(__name__)


class Patience:
    """Hears every event of a link."""

    def __init__(self, config: BrokerConfig, at_ms: int) -> None:
        self._config = config
        self._was_connected = False
        self.deadline_at_ms = at_ms + config.give_up_ms if config.give_up_ms else None
        """When to call `time_reached`; None: there is no hurry (any more)."""

    def link_event(self, event: LinkEvent) -> None:
        """Something happened on the link.

        Raises:
            BrokerError: it is refused before it ever was up, or cannot go on.
        """
        match event:
            case Connected():
                self._was_connected, self.deadline_at_ms = True, None
            case Refused(reason) if self._was_connected:
                _log.warning("%s; trying again", reason)
            case Refused(reason):
                raise BrokerError(reason, hint=self._config.refused_hint)
            case Broken(reason):
                raise BrokerError(reason, hint="start again; the log above has the details")

    def time_reached(self, at_ms: int) -> None:
        """Let time pass.

        Raises:
            BrokerError: there has been no connection for `broker.give_up_ms`.
        """
        if self.deadline_at_ms is not None and at_ms >= self.deadline_at_ms:
            broker = self._config
            raise BrokerError(
                f"no broker answered at {broker.host}:{broker.port} "
                f"within {broker.give_up_ms / 1000:g} s",
                hint="start the broker or correct [broker]; give_up_ms = 0 waits for ever",
            )


def await_delivery(inbox: SimpleQueue[Any], token: int | None, seconds: float) -> None:
    """Until the broker has taken our last word, or a moment has passed."""
    deadline_s = time.monotonic() + seconds
    while token is not None and (left_s := deadline_s - time.monotonic()) > 0:
        try:
            item = inbox.get(timeout=left_s)
        except Empty:
            return
        if isinstance(item, Delivered) and item.token == token:
            return
