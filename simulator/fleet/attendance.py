"""Who is here, as the production's `Fleet` sees it, and when who goes is missed.

The hellos of a device without news bring nothing and are not simulated; when it goes, they are
caught up on, for its silence begins at the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.fleet import Fleet
from fedtide.config import BrokerConfig
from fedtide.limits import DEVICES_MAX

if TYPE_CHECKING:
    from simulator.fleet.device import Device

WILL_MS = BrokerConfig().keepalive_s * 1_500
"""A broker misses a client after one and a half keep-alives (MQTT 5.0, section 3.1.2.10)."""


class Attendance:
    """See the module. Times are those of the agenda."""

    def __init__(self, seed: int, hello_ms: int) -> None:
        self.fleet = Fleet(f"simulated/{seed}", hello_ms, DEVICES_MAX)
        self._hello_at_ms: dict[int, int] = {}
        self._refused: dict[int, Device] = {}
        """In the order in which they came."""

    def hello(self, device: Device, at_ms: int) -> bool:
        """A device says hello. False: the house is full; it comes in when another has gone."""
        if self.fleet.hello(device.name, "", at_ms) == "full":
            self._refused[device.index] = device
            return False
        self._hello_at_ms[device.index] = at_ms
        return True

    def missed_at_ms(self, device: Device, at_ms: int) -> int | None:
        """It is off from now on: when that is noticed, unless it is back before. None: it was not
        here."""
        name = device.name
        heard_at_ms = self.fleet.heard_at_ms(name)
        if heard_at_ms is None:
            self._refused.pop(device.index, None)
            return None
        since_ms = at_ms - self._hello_at_ms[device.index]
        last_at_ms = at_ms - since_ms % self.fleet.hello_ms(name)
        self.fleet.hello(name, "", max(heard_at_ms, last_at_ms))
        silent_at_ms = self.fleet.silent_at_ms(name)
        assert silent_at_ms is not None, "it is here"
        return min(at_ms + WILL_MS, silent_at_ms)

    def missed(self, device: Device, at_ms: int) -> Device | None:
        """It is here no more. Who waits for its place, if anybody does."""
        self.fleet.left(device.name, at_ms)
        return self._refused.pop(next(iter(self._refused))) if self._refused else None
