"""Links by name, and how long a transfer takes. Sources: docs/simulate.md, "Links"."""

from __future__ import annotations

import math
from typing import Literal

from fedtide.errors import ConfigError
from simulator.fleet.scenario import LinkNumbers

Direction = Literal["down", "up"]
_SEGMENT_BYTES = 1_460
"""TCP's payload of an Ethernet frame."""
_MATHIS = math.sqrt(1.5)

_MBIT = 1e6 / 8
LINKS = {
    "ethernet": LinkNumbers(1_000 * _MBIT, 1_000 * _MBIT, 0.5),  # nominal
    "wifi": LinkNumbers(115.22 * _MBIT, 17.18 * _MBIT, 7),  # median of US homes, Ookla, Q2 2021
    "4g": LinkNumbers(12 * _MBIT, 12 * _MBIT, 35),  # WebPageTest's profile LTE
    "3g": LinkNumbers(1.6 * _MBIT, 0.768 * _MBIT, 150),  # its 3G
    "2g": LinkNumbers(0.24 * _MBIT, 0.2 * _MBIT, 420),  # its Edge
    "satellite": LinkNumbers(19.73 * _MBIT, 2.43 * _MBIT, 362),  # HughesNet, Ookla, Q2 2021
}
"""Latency is half of the published ping."""


def link_numbers(link: str | LinkNumbers, where: str) -> LinkNumbers:
    """The numbers of a link.

    Raises:
        ConfigError: no link has that name.
    """
    if isinstance(link, LinkNumbers):
        return link
    if link not in LINKS:
        raise ConfigError(
            f"{where} is {link!r}, expected numbers or one of: {', '.join(LINKS)}",
            hint="numbers: { down_bytes_per_s = 500_000, up_bytes_per_s = 60_000, "
            'latency_ms = 80 }; docs/simulate.md, "Links"',
        )
    return LINKS[link]


def transfer_ms(link: LinkNumbers, size_bytes: int, direction: Direction) -> float:
    """From asking for `size_bytes` to their last byte's arrival: there and back, and the bytes.

    Loss limits TCP's rate to (segment / round trip) * sqrt(3/2) / sqrt(loss), and each lost
    segment travels twice (Mathis et al. 1997, "The Macroscopic Behavior of the TCP Congestion
    Avoidance Algorithm", section 2).
    """
    rate = link.down_bytes_per_s if direction == "down" else link.up_bytes_per_s
    rate *= 1 - link.loss
    round_trip_ms = 2 * link.latency_ms
    if link.loss and round_trip_ms:
        bound = _SEGMENT_BYTES * 1_000 / round_trip_ms * _MATHIS / math.sqrt(link.loss)
        rate = min(rate, bound)
    return round_trip_ms + size_bytes * 1_000 / rate
