"""A real broker for every test that asks for one, once on each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.brokers import COORDINATOR, Broker, find_broker

DEVICES = ("alpha", "beta", "gamma", "delta")
"""Devices that the `broker` fixture has accounts for, beside coordinator and observer."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder runs real processes."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.end_to_end)


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """A running broker with accounts for coordinator, observer and `DEVICES`.

    Where Mosquitto is missing the test fails (`make test` installs it): a skip would hide that the
    real broker was never tried.
    """
    kind = find_broker(request.param)
    with Broker(kind, tmp_path / "broker", (COORDINATOR, *DEVICES)) as running:
        yield running
