"""How messages fare just now. All zero: a perfect network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Weather:
    """Probabilities for each message, and bounds. Fault plans set them, healing clears them."""

    drop: float = 0.0
    """The broker acknowledges a message and loses it (PUBACK is not delivery)."""
    duplicate: float = 0.0
    """A QoS 1 message comes twice."""
    reorder: float = 0.0
    """A message is overtaken by others."""
    delay: float = 0.0
    """A message is very late."""
    delay_ms_max: int = 0
    qos0_loss: float = 0.0
    """A QoS 0 message is lost on its way down."""
    queue_max: int = 1_000
    """Messages that the broker holds for one client; the newest beyond are dropped silently."""
    will_lost: float = 0.0
    will_delay_ms: int = 0

    def clear(self) -> None:
        """From now on nothing is lost."""
        for name, value in vars(Weather()).items():
            setattr(self, name, value)
