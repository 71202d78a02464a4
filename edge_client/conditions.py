"""When this device may train, fetch and send: `[conditions]` of client.toml, and their judge. Pure.

`examine` says of each condition that is asked for whether it is met, `judge` what is held up by
those that are not. What cannot be read on this machine is not met: who asked for a protection does
not get training without it. A condition that was not met is met again only beyond a margin
(temperature, battery), and after it has been met for a while, so that nothing flaps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from edge_client.hours import Moment, is_open, opening, parse_window
from fedtide.config import Positive

SETTLE_MS = 60_000
"""A condition that was not met must be met for this long; hours are exact."""
RETELL_MS = 60_000
"""How often the text of what is held up follows the readings: each change is a message to all."""
TEMPERATURE_MARGIN_C, BATTERY_MARGIN_PERCENT = 5.0, 5
UNDER_VOLTAGE, FREQUENCY_CAPPED, THROTTLED, SOFT_LIMIT = 1, 2, 4, 8
"""Bits of the Raspberry Pi's firmware that tell how it is now; those from 16 on, how it was."""
_HARMFUL = {
    UNDER_VOLTAGE: "the supply's voltage is too low",
    FREQUENCY_CAPPED: "the processor's frequency is capped",
    THROTTLED: "the processor is throttled",
}
"""The soft limit of a Pi 3 (60 °C) costs some speed and is no danger."""

Power = Literal["mains", "battery"]
Share = Annotated[float, Meta(ge=0, le=1)]


class ConditionsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """When this device may train. Where nothing is said, always."""

    mains: bool = False
    """Only on mains."""
    battery_percent_min: Annotated[int, Meta(ge=1, le=100)] | None = None
    """On battery, only with this charge."""
    temperature_c_max: Annotated[float, Meta(ge=0, le=120)] | None = None
    temperature_c_resume: Annotated[float, Meta(ge=0, le=120)] | None = None
    """After it was too hot, train again below this; by default 5 degrees below the maximum."""
    throttled: Literal["auto", "wait", "ignore"] = "auto"
    """The firmware's flags of a Raspberry Pi; auto: wait, where there are any."""
    load_max: Share | None = None
    """Part of all processors that others may use."""
    memory_mb_min: Positive | None = None
    """Available, with what this client has already."""
    disk_mb_min: Positive | None = None
    """Free where the state folder is."""
    metered: Literal["wait", "use"] = "use"
    metered_interfaces: tuple[str, ...] | None = None
    """Patterns of names; None: NetworkManager says which are metered."""
    hours: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    """None: at all hours."""

    def __post_init__(self) -> None:
        for text in self.hours or ():
            parse_window(text)
        if self.temperature_c_resume is not None and (
            self.temperature_c_max is None or self.temperature_c_resume > self.temperature_c_max
        ):
            raise ValueError(
                f"temperature_c_resume is {self.temperature_c_resume:g}, "
                f"expected a temperature_c_max of at least that"
            )


class Link(NamedTuple):
    """What carries this device's default route."""

    interface: str
    """Empty: there is no default route."""
    metered: bool | None
    """None: nobody can tell."""


class Readings(Struct, frozen=True):
    """How this machine is now; None: it cannot be read, or makes no sense."""

    power: Power | None = None
    battery_percent: float | None = None
    temperature_c: float | None = None
    throttled: int | None = None
    load: float | None = None
    """Part of all processors that others than this client use."""
    memory_mb: int | None = None
    disk_mb: int | None = None
    link: Link | None = None
    time: Moment | None = None
    """None: the clock is not set."""


class Condition(NamedTuple):
    """One that is asked for, and how it is with it."""

    key: str
    """Of `[conditions]`."""
    met: bool | None
    """None: it cannot be told on this machine."""
    now: str
    again: str
    """What would make it met."""

    @property
    def text(self) -> str:
        """Why something waits."""
        if self.met is None:
            return f"conditions.{self.key} cannot be judged: {self.now}"
        return f"{self.now}, {self.again}"


class Held(NamedTuple):
    """A condition that holds something up."""

    text: str
    told_at_ms: int
    met_at_ms: int | None = None
    """Since when it is met, if it is only watched whether it stays so."""


class Verdict(NamedTuple):
    """What is held up, and why."""

    held: Mapping[str, Held] = {}

    @property
    def training(self) -> str:
        """Why nothing is trained; empty: it may be."""
        return "; ".join(held.text for key, held in self.held.items() if key != "metered")

    @property
    def transfers(self) -> str:
        """Why nothing large is fetched or sent; empty: it may be."""
        return "; ".join(held.text for key, held in self.held.items() if key == "metered")


def judge(readings: Readings, config: ConditionsConfig, before: Verdict, at_ms: int) -> Verdict:
    """What is held up now, after what was held up `before`; `at_ms` of a clock that goes on."""
    held = {}
    for condition in examine(readings, config, before.held):
        known = before.held.get(condition.key)
        if not condition.met:
            if known is None or at_ms - known.told_at_ms >= RETELL_MS:
                known = Held(condition.text, at_ms)
            held[condition.key] = known._replace(met_at_ms=None)
        elif known is not None and condition.key != "hours":
            met_at_ms = at_ms if known.met_at_ms is None else known.met_at_ms
            if at_ms - met_at_ms < SETTLE_MS:
                held[condition.key] = known._replace(met_at_ms=met_at_ms)
    return Verdict(held)


def examine(
    readings: Readings, config: ConditionsConfig, held: Collection[str] = ()
) -> Iterator[Condition]:
    """Each condition that is asked for; `held` names those that hold something up already."""
    yield from _power(readings, config, held)
    yield from _heat(readings, config, held)
    if config.load_max is not None:
        yield _load(readings.load, config.load_max)
    amounts = (
        ("memory_mb_min", config.memory_mb_min, readings.memory_mb, "memory available"),
        ("disk_mb_min", config.disk_mb_min, readings.disk_mb, "disk space free"),
    )
    for key, least, amount, what in amounts:
        if least is not None:
            again = f"trains again with {least} MB"
            met = None if amount is None else amount >= least
            now = f"{what} is unknown" if amount is None else f"{amount} MB of {what}"
            yield Condition(key, met, now, again)
    if config.metered == "wait":
        yield _metered(readings.link)
    if config.hours:
        yield _hours(readings.time, config.hours)


def _power(
    readings: Readings, config: ConditionsConfig, held: Collection[str]
) -> Iterator[Condition]:
    power = readings.power
    known = None if power is None else power == "mains"
    now = "no power supply can be read" if power is None else f"on {power}"
    if config.mains:
        yield Condition("mains", known, now, "trains again on mains")
    if config.battery_percent_min is not None:
        key, least = "battery_percent_min", config.battery_percent_min
        if key in held:
            least = min(100, least + BATTERY_MARGIN_PERCENT)
        met, charge = known, readings.battery_percent
        if power == "battery":
            now = (
                "the battery's charge is unknown" if charge is None else f"battery at {charge:.0f}%"
            )
            met = None if charge is None else charge >= least
        yield Condition(key, met, now, f"trains again at {least}% or on mains")


def _heat(
    readings: Readings, config: ConditionsConfig, held: Collection[str]
) -> Iterator[Condition]:
    highest, now_c = config.temperature_c_max, readings.temperature_c
    if highest is not None:
        key, resume = "temperature_c_max", config.temperature_c_resume
        resume = highest - TEMPERATURE_MARGIN_C if resume is None else resume
        met = None
        if now_c is not None:
            met = now_c < resume if key in held else now_c <= highest
        now = "no temperature can be read" if now_c is None else f"{now_c:.0f} °C"
        yield Condition(key, met, now, f"trains again below {resume:g} °C")
    flags = readings.throttled
    automatic = config.throttled == "auto" and (flags is not None or "throttled" in held)
    if config.throttled == "wait" or automatic:
        told = [text for bit, text in _HARMFUL.items() if flags is not None and flags & bit]
        now = " and ".join(told) or "no flag of the firmware is set"
        if flags is None:
            now = "no flags of a Raspberry Pi's firmware can be read"
        met = None if flags is None and not automatic else not told
        yield Condition(
            "throttled", met, now, "trains again when the firmware reports none of this"
        )


def _load(load: float | None, highest: float) -> Condition:
    now = "the load is unknown" if load is None else f"others use {load:.0%} of the processors"
    met = None if load is None else load <= highest
    return Condition("load_max", met, now, f"trains again at {highest:.0%}")


def _metered(link: Link | None) -> Condition:
    again = "fetches and sends again over another link"
    if link is None:
        return Condition("metered", None, "no routes can be read", again)
    if not link.interface:
        return Condition("metered", True, "there is no default route", again)
    if link.metered is None:
        now = f"NetworkManager says nothing of {link.interface}; list conditions.metered_interfaces"
        return Condition("metered", None, now, again)
    now = f"the link over {link.interface} is {'' if link.metered else 'not '}metered"
    return Condition("metered", not link.metered, now, again)


def _hours(now: Moment | None, texts: tuple[str, ...]) -> Condition:
    windows = [parse_window(text) for text in texts]
    if now is None:
        return Condition("hours", None, "the clock is not set", "")
    inside = is_open(windows, now)
    said = f"{'within' if inside else 'outside of'} its hours"
    return Condition("hours", inside, said, f"trains again at {opening(windows, now)}")
