"""Who is here: when each device was heard, when it is to speak again, and who uses its name.

Kept in memory: after a restart every device says hello anew.
"""

from __future__ import annotations

import hashlib
from typing import Literal

SILENCES_MAX = 3
"""A device that misses this many hellos counts as gone."""
HELLOS_PER_S_MAX = 50
"""Of a whole fleet, as they come on average and when all come back at once."""
SPREAD_MS_MIN = 1_000
"""A fleet that is through within this time need not spread out."""
HELLO_MS_MIN = 1_000
"""Of a Welcome (protocol, section 3)."""

Arrival = Literal["new", "known", "twin", "full"]


class _Presence:
    def __init__(self, installation: str) -> None:
        self.installation = installation
        self.heard_at_ms = 0
        self.hello_ms = 0
        self.twin_at_ms: int | None = None
        """When another installation last used the name."""


class Fleet:
    """See the module."""

    def __init__(self, session: str, hello_ms: int, devices_max: int) -> None:
        self._session = session
        self._hello_ms = hello_ms
        self._devices_max = devices_max
        self._devices_expected = 0
        self._here: dict[str, _Presence] = {}
        self._look_at_ms: int | None = None
        """No device falls silent before: not each message costs a look at all of them."""

    def expect(self, devices: int) -> None:
        """So many were here before this life of the coordinator, and may come back."""
        self._devices_expected = min(devices, self._devices_max)

    def hello(self, device_id: str, installation: str, at_ms: int) -> Arrival:
        """A device says hello.

        The installation that was heard first keeps the name until it has been silent for as long
        as makes any device count as gone. Devices that name no installation are not told apart.
        """
        here = self._here.get(device_id)
        if here is None:
            if len(self._here) >= self._devices_max:
                return "full"
            here = self._here[device_id] = _Presence(installation)
            self._heard(device_id, here, at_ms)
            silent_at_ms = at_ms + self._silence_ms(here)
            self._look_at_ms = min(silent_at_ms, self._look_at_ms or silent_at_ms)
            return "new"
        if installation and here.installation and installation != here.installation:
            here.twin_at_ms = at_ms
            return "twin"
        here.installation = here.installation or installation
        self._heard(device_id, here, at_ms)
        return "known"

    def _heard(self, device_id: str, here: _Presence, at_ms: int) -> None:
        here.heard_at_ms = at_ms
        here.hello_ms = self.hello_ms(device_id)

    def heard(self, device_id: str, at_ms: int) -> None:
        """It said anything else: which installation did is not known when there are two."""
        here = self._here.get(device_id)
        if here is not None and not self._has_twin(here, at_ms):
            here.heard_at_ms = at_ms

    def heard_at_ms(self, device_id: str) -> int | None:
        """When it was heard; None: it is not here."""
        here = self._here.get(device_id)
        return None if here is None else here.heard_at_ms

    def silent_at_ms(self, device_id: str) -> int | None:
        """When it counts as gone if it says no more; None: it is not here."""
        here = self._here.get(device_id)
        return None if here is None else here.heard_at_ms + self._silence_ms(here)

    def left(self, device_id: str, at_ms: int) -> bool:
        """It says that it goes. False: it was not here, or perhaps only its twin goes."""
        here = self._here.get(device_id)
        if here is None or self._has_twin(here, at_ms):
            return False
        del self._here[device_id]
        return True

    def _has_twin(self, here: _Presence, at_ms: int) -> bool:
        return here.twin_at_ms is not None and at_ms - here.twin_at_ms < self._silence_ms(here)

    def hello_ms(self, device_id: str) -> int:
        """When a device is to say hello again: its own, within 25% of the configured one.

        A larger fleet says it less often.
        """
        digest = hashlib.sha256(f"{self._session}/{device_id}".encode()).digest()
        share = int.from_bytes(digest[:4]) / 2**32
        return max(HELLO_MS_MIN, round(max(self._hello_ms, self._all_ms()) * (0.75 + share / 2)))

    def spread_ms(self) -> int:
        """Over how long a fleet of this size is to come back."""
        spread_ms = self._all_ms()
        return spread_ms if spread_ms > SPREAD_MS_MIN else 0

    def _all_ms(self) -> int:
        devices = max(len(self._here), self._devices_expected)
        return devices * 1_000 // HELLOS_PER_S_MAX

    def _silence_ms(self, here: _Presence) -> int:
        return SILENCES_MAX * here.hello_ms + self.spread_ms()

    def next_deadline_at_ms(self) -> int | None:
        """When the next device may have been silent for too long."""
        return self._look_at_ms

    def silent(self, at_ms: int) -> list[str]:
        """Devices that have been silent for too long; they are here no more."""
        if self._look_at_ms is None or at_ms < self._look_at_ms:
            return []
        silent_at_ms = {
            device_id: here.heard_at_ms + self._silence_ms(here)
            for device_id, here in self._here.items()
        }
        gone = sorted(name for name, then_ms in silent_at_ms.items() if then_ms <= at_ms)
        for device_id in gone:
            del self._here[device_id], silent_at_ms[device_id]
        self._look_at_ms = min(silent_at_ms.values(), default=None)
        return gone


TWIN_REFUSED = "refused: two installations of one device"
"""What is counted with each such hello."""


def twin_notice(device_id: str, installation: str) -> str:
    """What the second installation under one name is told."""
    return (
        f"another installation uses the name {device_id} now; this one ({installation[:8]}) is "
        "not invited: give each device its own name"
    )
