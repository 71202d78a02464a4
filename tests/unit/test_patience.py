"""When the commands give up on a broker, and when they must not."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError
from fedtide.patience import Patience, await_delivery
from fedtide.transport import Broken, Connected, Delivered, Disconnected, LinkEvent, Refused

UP = Connected("MQTT 5", 1000)


def test_a_first_connection_that_never_comes() -> None:
    patience = Patience(BrokerConfig(give_up_ms=1_000), 5_000)
    assert patience.deadline_at_ms == 6_000
    patience.link_event(Disconnected("nobody there"))
    patience.time_reached(5_999)
    with pytest.raises(BrokerError, match="no broker answered at localhost:1883 within 1 s"):
        patience.time_reached(6_000)


def test_zero_waits_for_ever() -> None:
    patience = Patience(BrokerConfig(give_up_ms=0), 0)
    assert patience.deadline_at_ms is None
    patience.time_reached(1_000_000_000)


def test_a_refusal_ends_only_who_was_never_connected() -> None:
    patience = Patience(BrokerConfig(), 0)
    with pytest.raises(BrokerError, match="not authorised"):
        patience.link_event(Refused("not authorised"))
    patience.link_event(UP)
    patience.link_event(Refused("not authorised"))
    patience.time_reached(1_000_000_000)


def test_a_broken_link_ends_everybody() -> None:
    patience = Patience(BrokerConfig(), 0)
    patience.link_event(UP)
    with pytest.raises(BrokerError, match="a bug"):
        patience.link_event(Broken("a bug"))


def test_the_last_word_is_waited_for_until_it_is_taken() -> None:
    inbox: SimpleQueue[LinkEvent] = SimpleQueue()
    for event in (Delivered(1), UP, Delivered(2), Delivered(3)):
        inbox.put(event)
    await_delivery(inbox, 2, 5.0)
    assert inbox.qsize() == 1
    await_delivery(inbox, 9, 0.01)
    await_delivery(inbox, None, 5.0)
