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
    ABANDONED = "□"
    ABSENT = "·"


MEANING = {
    Fate.COUNTED: "counted",
    Fate.KILLED: "killed while training",
    Fate.LATE: "too late",
    Fate.OFFLINE: "no network",
    Fate.ABANDONED: "round abandoned",
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
    quorum: int
    step: str = "starting"
    round_id: int = 0
    """The newest round, whether of training or the final evaluation."""
    evaluating: bool = False
    """Whether that is the final evaluation: the devices judge the final model, nobody trains."""
    finished: bool = False
    abandoned: dict[int, int] = field(default_factory=dict)
    """Round -> updates it had: too few, so that its model is the one before."""
    answers_count: int = 0
    """Devices that took part in the final evaluation."""
    rounds_done: int = 0
    accepted: tuple[str, ...] = ()
    accuracies: list[float] = field(default_factory=list)
    """Of model versions 0, 1, 2, ... on the test set."""
    central: float | None = None
    best_single: float | None = None
    seconds_left: float | None = None
    news: list[str] = field(default_factory=list)
    _base_version: int = -1
    """Model version that the newest round began with."""

    @property
    def training_round_id(self) -> int:
        """The newest round of training."""
        return self.round_id - 1 if self.evaluating else self.round_id

    @property
    def closed_round_id(self) -> int:
        """The newest round of training that has ended."""
        ended = self.evaluating or self.finished
        return self.training_round_id if ended else max(0, self.round_id - 1)

    def status(self, status: Status) -> None:
        """The coordinator says what it does."""
        if status.round_id != self.round_id:
            if status.model_version == self._base_version:
                self._abandon()
            self.close_round()
            self.round_id, self._base_version = status.round_id, status.model_version
            self.evaluating = status.model_version >= self.rounds_count
        elif status.phase == "backing_off":
            self._abandon()
        if status.phase == "collecting":
            self.accepted = tuple(dict.fromkeys((*self.accepted, *status.accepted)))
        self.rounds_done = status.model_version
        if status.accuracy is not None and len(self.accuracies) <= status.model_version:
            self.accuracies.append(status.accuracy)
        if self.evaluating:
            self.answers_count = len(self.accepted)
            return
        for name in status.accepted:
            if name in self.devices:
                self.devices[name].fates[status.round_id] = Fate.COUNTED

    def close_round(self) -> None:
        """Whoever has no fate yet in the round that ends was not there."""
        if self.round_id and not self.evaluating:
            for device in self.devices.values():
                device.fates.setdefault(self.round_id, Fate.ABSENT)
        self.accepted = ()

    def finish(self) -> None:
        """The coordinator has ended, and with it everybody's work."""
        self.close_round()
        self.finished, self.seconds_left = True, None
        for device in self.devices.values():
            device.doing = "done"
            device.dead = device.offline = device.held = False

    def _abandon(self) -> None:
        """The newest round came to nothing: no update of it counts."""
        if not self.round_id or self.evaluating or self.round_id in self.abandoned:
            return
        self.abandoned[self.round_id] = len(self.accepted)
        for device in self.devices.values():
            if device.fates.get(self.round_id, Fate.ABSENT) in (Fate.COUNTED, Fate.ABSENT):
                device.fates[self.round_id] = Fate.ABANDONED
        self.accepted = ()
        self.tell(self.abandonment(self.round_id))

    def abandonment(self, round_id: int) -> str:
        """In words, why a round came to nothing."""
        count = self.abandoned[round_id]
        needed = f" of at least {self.quorum}" if count < self.quorum else ""
        return f"abandoned, {count} {'update' if count == 1 else 'updates'}{needed}"

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
        if not self.round_id:
            self.news.append(text)
        elif self.evaluating:
            self.news.append(f"final evaluation: {text}")
        else:
            self.news.append(f"round {self.round_id}: {text}")
