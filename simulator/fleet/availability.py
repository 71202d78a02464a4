"""When a device is on: a lazy stream of intervals, in milliseconds since the start."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.fleet.lots import Lots, exponential
from simulator.fleet.scenario import AvailabilityConfig

Interval = tuple[int, int]
"""On from the first, inclusive, until the second, exclusive."""
FOREVER_MS = 2**53
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


class Availability:
    """The intervals of every device of a scenario."""

    def __init__(self, config: AvailabilityConfig, seed: int) -> None:
        self._config = config
        self._lots = Lots(seed, "availability")

    def intervals(self, device: int) -> Iterator[Interval]:
        """Times at which a device is on: ascending, neither empty nor touching; may be endless."""
        match self._config.kind:
            case "always":
                return iter([(0, FOREVER_MS)])
            case "churn":
                return self._churn(device)
            case _:
                raise NotImplementedError(self._config.kind)

    def _churn(self, device: int) -> Iterator[Interval]:
        """On and off in turns; at the start it is on with the share that it is on in the long run,
        and without memory of how long it has been (both are exponential)."""
        on_s, off_s = self._config.on_s, self._config.off_s
        now, number = 0, 0
        begins_off = self._lots.draw(device).first >= on_s / (on_s + off_s)
        while now < FOREVER_MS:
            number += 1
            drawn = self._lots.draw(device, number)
            if begins_off or number > 1:
                now += max(1, round(exponential(drawn.first, off_s) * 1_000))
            until = now + max(1, round(exponential(drawn.second, on_s) * 1_000))
            yield now, until
            now = until
