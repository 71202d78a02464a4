"""What befalls a task: how much longer it takes, and whether a power cut ends it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from simulator.fleet.lots import Draw, Lots, exponential, log_normal
from simulator.fleet.scenario import DropoutsConfig, StragglersConfig

Phase = Literal["before_download", "in_training", "before_upload", "during_upload"]
PHASES: tuple[Phase, ...] = ("before_download", "in_training", "before_upload", "during_upload")


class Dropout(NamedTuple):
    """A power cut."""

    phase: Phase
    fraction: float
    """Of the phase that is done by then, in (0, 1); of the epoch where there is one."""
    epoch: int | None
    """In this epoch of the training, the first is 1 (the last, if there are fewer)."""
    back_after_ms: int | None
    """From the power cut until the device starts again; None: never."""


class Fate(NamedTuple):
    """What befalls one task."""

    slow_factor: float
    """On the time of the training, at least 0; 1: as the profile says."""
    dropout: Dropout | None


_ORDINARY = Fate(1.0, None)


class Fates:
    """The fates of all tasks of a scenario, each a function of seed, device, round."""

    def __init__(self, dropouts: DropoutsConfig, stragglers: StragglersConfig, seed: int) -> None:
        self._dropouts, self._stragglers = dropouts, stragglers
        self._cuts = Lots(seed, "dropouts")
        self._slow = Lots(seed, "stragglers")
        rates = (getattr(dropouts, phase) for phase in PHASES)
        self._rates = tuple(zip(PHASES, rates, strict=True))
        self._any_cut = dropouts.total > 0
        self._any_slow = stragglers.kind != "none"

    def of(self, device: int, round_id: int) -> Fate:
        """The fate of a device's task of a round, however often it sets about it."""
        dropout = self._cut(device, round_id) if self._any_cut else None
        factor = self._factor(device, round_id) if self._any_slow else 1.0
        return Fate(factor, dropout) if dropout or factor != 1 else _ORDINARY

    def _factor(self, device: int, round_id: int) -> float:
        config = self._stragglers
        number = round_id + 1 if config.per == "task" else 0
        for_whether, for_factor, *_ = self._slow.draw(device, number)
        if for_whether >= config.fraction:
            return 1.0
        return config.factor if config.kind == "factor" else log_normal(for_factor, config.sigma)

    def _cut(self, device: int, round_id: int) -> Dropout | None:
        drawn = self._cuts.draw(device, round_id)
        left = drawn[0]
        for phase, rate in self._rates:
            left -= rate
            if left < 0:
                return self._dropout(phase, drawn)
        return None

    def _dropout(self, phase: Phase, drawn: Draw) -> Dropout:
        config = self._dropouts
        _, fraction, for_pause, _ = drawn
        epoch = config.at_epoch if phase == "in_training" else None
        back_after_ms = None
        if config.back_after_s:
            back_after_ms = max(1, round(exponential(for_pause, config.back_after_s) * 1_000))
        return Dropout(phase, fraction, epoch, back_after_ms)
