"""When a device is on: a lazy stream of intervals, in milliseconds since the start."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import count

from simulator.fleet.lots import Lots, exponential
from simulator.fleet.scenario import AvailabilityConfig
from simulator.fleet.trace import Interval, read_trace

FOREVER_MS = 2**53
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_FIRST_DAY = -3
"""The earliest night that can still last at the start: shifts and zones are a day each at most."""


class Availability:
    """The intervals of every device of a scenario.

    Raises:
        ConfigError: the trace cannot be used.
    """

    def __init__(
        self, config: AvailabilityConfig, seed: int, *, devices: int, hours_max: float
    ) -> None:
        self._config = config
        self._lots = Lots(seed, "availability")
        self._horizon_ms = math.ceil(hours_max * _HOUR_MS)
        self._trace: list[list[Interval]] = []
        if config.trace is not None:
            self._trace = read_trace(config.trace, devices, config.repeat_s)

    def intervals(self, device: int) -> Iterator[Interval]:
        """Times at which a device is on: ascending, neither empty nor touching; those that begin
        before the scenario's end."""
        match self._config.kind:
            case "always":
                found: Iterable[Interval] = ((0, FOREVER_MS),)
            case "churn":
                found = self._churn(device)
            case "day_night":
                found = self._days(device)
            case "trace":
                found = self._recorded(device)
        return _joined(found, self._horizon_ms)

    def _churn(self, device: int) -> Iterator[Interval]:
        """On and off in turns; at the start it is on with the share that it is on in the long run,
        and without memory of how long it has been (both are exponential)."""
        on_s, off_s = self._config.on_s, self._config.off_s
        is_on = self._lots.draw(device)[0] < on_s / (on_s + off_s)
        now = 0
        for number in count(1):
            for_off, for_on, *_ = self._lots.draw(device, number)
            if not is_on:
                now += max(1, round(exponential(for_off, off_s) * 1_000))
            until = now + max(1, round(exponential(for_on, on_s) * 1_000))
            yield now, until
            now, is_on = until, False

    def _days(self, device: int) -> Iterator[Interval]:
        """Nights and days, each spent on or off by lot."""
        config = self._config
        for_zone, for_shift, *_ = self._lots.draw(device)
        zone_ms = (for_zone - 0.5) * config.zones_h * _HOUR_MS
        shift_ms = (2 * for_shift - 1) * config.night_spread_s * 1_000
        first_ms = (config.night_from_h - config.starts_at_h) * _HOUR_MS - zone_ms + shift_ms
        night_ms = (config.night_until_h - config.night_from_h) % 24 * _HOUR_MS
        for day in count(_FIRST_DAY):
            for_night, for_day, *_ = self._lots.draw(device, day - _FIRST_DAY + 1)
            dusk = round(first_ms + day * _DAY_MS)
            dawn = round(first_ms + day * _DAY_MS + night_ms)
            if dusk > self._horizon_ms:
                return
            if for_night < config.night_share:
                yield dusk, dawn
            if for_day < config.day_share:
                yield dawn, round(first_ms + (day + 1) * _DAY_MS)

    def _recorded(self, device: int) -> Iterator[Interval]:
        """A device's own part of the trace, or, where it has fewer devices, that of another."""
        mine = self._trace[device % len(self._trace)]
        if self._config.repeat_s is None:
            yield from mine
            return
        period_ms = round(self._config.repeat_s * 1_000)
        for begin in count(0, period_ms):
            yield from ((begin + start, begin + until) for start, until in mine)


def _joined(found: Iterable[Interval], horizon_ms: int) -> Iterator[Interval]:
    """Cut off at 0, with touching intervals made one, until one begins at the horizon."""
    begin = end = 0
    for start, until in found:
        if start >= horizon_ms:
            break
        if start > end:
            if end > begin:
                yield begin, end
            begin = end = start
        end = max(end, until)
    if end > begin:
        yield begin, end
