"""What the demo knows while it runs: pure state, changed by what is heard and done."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedtide.messages import Presence, Status


class Fate(StrEnum):
    """What became of one device in one round. The value is its mark in the views."""

    COUNTED = "✓"
    KILLED = "✗"
    LATE = "◷"
    OFFLINE = "∅"
    ABSENT = "·"


MEANING = {
    Fate.COUNTED: "counted",
    Fate.KILLED: "killed while training",
    Fate.LATE: "too late",
    Fate.OFFLINE: "no network",
    Fate.ABSENT: "not there",
}


@dataclass
class DeviceScene:
    """One device as the public sees it."""

    name: str
    digits: tuple[int, ...]
    runtime: str
    doing: str = "starting"
    dead: bool = False
    offline: bool = False
    held: bool = False
    fates: dict[int, Fate] = field(default_factory=dict)


@dataclass
class Scene:
    """The whole federation."""

    devices: dict[str, DeviceScene]
    rounds_count: int
    broker: str
    step: str = "starting"
    round_id: int = 0
    phase: str = ""
    rounds_done: int = 0
    accepted: tuple[str, ...] = ()
    accuracies: list[float] = field(default_factory=list)
    """Of model versions 0, 1, 2, ... on the test set."""
    central: float | None = None
    best_single: float | None = None
    seconds_left: float | None = None
    news: list[str] = field(default_factory=list)

    def status(self, status: Status) -> None:
        """The coordinator says what it does."""
        if status.round_id != self.round_id:
            self.close_round()
            self.round_id = status.round_id
        if status.phase == "collecting":
            self.accepted = tuple(dict.fromkeys((*self.accepted, *status.accepted)))
        self.phase = status.phase
        self.rounds_done = status.model_version
        if status.accuracy is not None and len(self.accuracies) <= status.model_version:
            self.accuracies.append(status.accuracy)
        for name in status.accepted:
            if name in self.devices:
                self.devices[name].fates[status.round_id] = Fate.COUNTED

    def close_round(self) -> None:
        """Whoever has no fate yet in the round that ends was not there."""
        if self.round_id:
            for device in self.devices.values():
                device.fates.setdefault(self.round_id, Fate.ABSENT)
        self.accepted = ()

    def presence(self, name: str, presence: Presence) -> None:
        """A device says what it does, or its will says that it is gone."""
        device = self.devices[name]
        if device.dead or device.offline:
            return
        device.doing = presence.phase if presence.online else "not connected"

    def killed(self, name: str, round_id: int) -> None:
        """A device died in mid-training."""
        device = self.devices[name]
        device.dead, device.doing = True, "killed"
        device.fates[round_id] = Fate.KILLED
        self.tell(f"{name} is killed in mid-training")

    def restarted(self, name: str) -> None:
        """A device that died starts again."""
        device = self.devices[name]
        device.dead, device.doing = False, "starting again"
        self.tell(f"{name} starts again")

    def slowed(self, name: str, round_id: int) -> None:
        """Nothing that a device sends gets through any more in this round."""
        device = self.devices[name]
        device.held = True
        device.fates[round_id] = Fate.LATE
        self.tell(f"{name} has a slow link")

    def hastened(self, name: str) -> None:
        """What it had sent arrives, too late."""
        self.devices[name].held = False
        self.tell(f"the update of {name} comes too late")

    def cut_off(self, name: str, round_id: int) -> None:
        """A device is without network in this round."""
        device = self.devices[name]
        if not device.offline:
            self.tell(f"{name} loses its network")
        device.offline, device.doing = True, "no network"
        device.fates[round_id] = Fate.OFFLINE

    def healed(self, name: str) -> None:
        """Its network is back."""
        device = self.devices[name]
        device.offline, device.doing = False, "connecting"
        self.tell(f"{name} has its network back")

    def tell(self, text: str) -> None:
        """Remember one line of news."""
        self.news.append(f"round {self.round_id}: {text}" if self.round_id else text)
