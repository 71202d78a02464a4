"""A link for somebody who only asks: its own client id, no will, and a deadline on every wait."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from fedtide.access import Sealer
from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError, UnansweredError
from fedtide.mqtt import MqttTransport
from fedtide.transport import Broken, Connected, Disconnected, LinkEvent, Refused, Transport


class Inquiry:
    """One connection to a broker, for as long as the `with` block lasts.

    Its name differs from every client's and coordinator's: nobody loses a connection to it, unless
    the broker takes user names for client ids (Mosquitto's `use_username_as_clientid`).
    """

    def __init__(
        self,
        config: BrokerConfig,
        purpose: str,
        client_id: str | None = None,
        sealer: Sealer | None = None,
    ) -> None:
        """Reads the files that `config` names. `client_id`: whose connection shall end, instead;
        `sealer`: messages are sealed.

        Raises:
            ConfigError: one of them cannot be used.
        """
        # What the transport would log, its caller is told and says in better words.
        logging.getLogger("fedtide").addHandler(logging.NullHandler())
        self._events: SimpleQueue[LinkEvent] = SimpleQueue()
        own_id = f"fedtide-{purpose}-{secrets.token_hex(6)}"
        mqtt = partial(MqttTransport, config, client_id or own_id)
        deliver = self._events.put
        self.link: Transport = sealer(mqtt, deliver) if sealer else mqtt(deliver)
        self._where = f"{config.host}:{config.port}"
        self._refused_hint = config.refused_hint

    def __enter__(self) -> Self:
        self.link.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.link.stop()

    def connect(self, seconds: float) -> Connected:
        """Wait for the link.

        Raises:
            UnansweredError: there is none within `seconds`; with the last reason.
            BrokerError: refused.
        """
        reason = f"no broker answered at {self._where} within {seconds:g} s"
        hint = start_it = "start the broker, or correct [broker]"
        for event in self.events(seconds):
            match event:
                case Connected():
                    return event
                case Refused(why):
                    raise BrokerError(why, hint=self._refused_hint)
                case Broken(why):
                    raise BrokerError(why)
                case Disconnected(why, unwelcome=unwelcome):
                    reason = why.split("; trying", maxsplit=1)[0]
                    hint = self._refused_hint if unwelcome else start_it
                case _:
                    pass
        raise UnansweredError(reason, hint=hint)

    def events(self, seconds: float) -> Iterator[LinkEvent]:
        """What happens on the link within `seconds`."""
        until_s = time.monotonic() + seconds
        while (event := self.next_event(until_s - time.monotonic())) is not None:
            yield event

    def next_event(self, seconds: float) -> LinkEvent | None:
        """What happens next on the link; None: nothing within `seconds`."""
        try:
            return self._events.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def listen(self, filters: Iterable[str]) -> None:
        """Subscribe, without confirmation of each message."""
        self.link.subscribe(list(filters), confirm=False)
