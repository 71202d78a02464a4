"""How this machine is now: what Linux says of power, heat, load, memory, disk, routes and clock.

Nothing that is found there is trusted: files may be absent, hold nonsense, or vanish while they are
read; what makes no sense is None. Under `root` tests put the trees of other machines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import fedtide
from edge_client.conditions import UNDER_VOLTAGE, ConditionsConfig, Link, Power, Readings
from edge_client.hours import Moment
from fedtide.files import read_regular

_PLAUSIBLE_C = (-40.0, 150.0)
"""Zones without a sensor behind them say -274 or thousands."""
_CPU = re.compile(r"cpu|x86_pkg|soc[-_]thermal|coretemp|k10temp|zenpower", re.IGNORECASE)
_THROTTLED = (
    "sys/devices/platform/soc*/*firmware/get_throttled",
    "sys/devices/platform/*firmware/get_throttled",
)
_NETWORK_MANAGER_S, _NETWORK_MANAGER_TIMEOUT_S = 30.0, 5.0
"""How often it is asked, and for how long."""
_CLOCKS_APART_S = 3_600
_ROUTE_UP, _ROUTE_REJECT = 0x1, 0x200


class _Ticks(NamedTuple):
    """Of all processors since the start: how many there were, others' and idle ones."""

    total: int
    others: int


class Sensors:
    """See the module. `read` again for a load: it is of the time between two readings."""

    def __init__(
        self,
        config: ConditionsConfig,
        state_dir: Path,
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.time,
        ask_network_manager: Callable[[str], str] | None = None,
    ) -> None:
        self._config = config
        self._state_dir = state_dir
        self._root = root
        self._clock = clock
        self._ask = ask_network_manager or _ask_network_manager
        self._asked: tuple[str, float, bool | None] | None = None
        self._ticks = self._cpu_ticks()
        self._clock_least = Path(fedtide.__file__).stat().st_mtime

    def read(self) -> Readings:
        """Everything that can be read here; NetworkManager is asked only where it is needed."""
        power, battery_percent = self._power()
        return Readings(
            power=power,
            battery_percent=battery_percent,
            temperature_c=self._temperature_c(),
            throttled=self.throttled(),
            load=self._load(),
            memory_mb=self._memory_mb(),
            disk_mb=_disk_mb(self._state_dir),
            link=self._link(),
            time=self._time(),
        )

    def _text(self, path: str | Path) -> str | None:
        return _content(self._root / path)

    def _number(self, path: str | Path) -> int | None:
        return _integer(self._text(path))

    def _listed(self, folder: str) -> list[Path]:
        try:
            return sorted((self._root / folder).iterdir())
        except OSError:
            return []

    def _power(self) -> tuple[Power | None, float | None]:
        """Mains or battery, and the batteries' mean charge. Who has no battery is on mains."""
        online, statuses, charges = [], [], []
        for supply in self._listed("sys/class/power_supply"):
            kind = self._text(supply / "type")
            if self._text(supply / "scope") == "Device":
                continue  # of a mouse or a pen
            if kind == "Battery":
                statuses.append(self._text(supply / "status"))
                charge = self._number(supply / "capacity")
                charges += [charge] if charge is not None and 0 <= charge <= 100 else []
            elif kind is not None:
                online.append(self._number(supply / "online") == 1)
        charge_percent = sum(charges) / len(charges) if charges else None
        if not statuses or any(online):
            return "mains", charge_percent
        if "Discharging" in statuses or online:
            return "battery", charge_percent
        fed = {"Charging", "Full", "Not charging"} & set(statuses)
        return "mains" if fed else None, charge_percent

    def _temperature_c(self) -> float | None:
        """Of the processor, the hottest of several; else of whatever is hottest."""
        found = list(self._temperatures("sys/class/thermal", "thermal_zone*", "type", "temp"))
        if not any(_CPU.search(name) for name, _ in found):
            hwmon = self._temperatures("sys/class/hwmon", "hwmon*", "name", "temp*_input")
            found += [(name, degrees) for name, degrees in hwmon if _CPU.search(name)]
        of_cpu = [degrees for name, degrees in found if _CPU.search(name)]
        return max(of_cpu or [degrees for _, degrees in found], default=None)

    def _temperatures(
        self, folder: str, places: str, name: str, values: str
    ) -> Iterator[tuple[str, float]]:
        for place in sorted((self._root / folder).glob(places)):
            for file in sorted(place.glob(values)):
                number = self._number(file)
                if number is not None and _PLAUSIBLE_C[0] < number / 1000 < _PLAUSIBLE_C[1]:
                    yield self._text(place / name) or "", number / 1000

    def throttled(self) -> int | None:
        """The flags of a Raspberry Pi's firmware; where only the supply is watched, that one."""
        for pattern in _THROTTLED:
            for path in sorted(self._root.glob(pattern)):
                text = (self._text(path) or "").removeprefix("0x")
                if re.fullmatch(r"[0-9a-fA-F]{1,8}", text):
                    return int(text, 16)
        for path in sorted((self._root / "sys/class/hwmon").glob("hwmon*")):
            if self._text(path / "name") == "rpi_volt":
                alarm = self._number(path / "in0_lcrit_alarm")
                if alarm is not None:
                    return UNDER_VOLTAGE if alarm else 0
        return None

    def _load(self) -> float | None:
        """What others had of all processors since the last time."""
        before, now = self._ticks, self._cpu_ticks()
        self._ticks = now
        if before is None or now is None or now.total <= before.total:
            return None
        return min(1.0, max(0.0, (now.others - before.others) / (now.total - before.total)))

    def _cpu_ticks(self) -> _Ticks | None:
        """Of this process, its threads and the commands that it ran, nothing counts as others'."""
        line = (self._text("proc/stat") or "").partition("\n")[0].split()
        own = (self._text("proc/self/stat") or "").rpartition(")")[2].split()
        counts = [_integer(text) for text in line[1:9]]
        mine = [_integer(text) for text in own[11:15]]
        if len(counts) < 8 or len(mine) < 4 or line[0] != "cpu":
            return None
        known = [count for count in counts + mine if count is not None and count >= 0]
        if len(known) < len(counts) + len(mine):
            return None
        total, idle, waiting = sum(known[:8]), known[3], known[4]
        return _Ticks(total, total - idle - waiting - sum(known[8:]))

    def _memory_mb(self) -> int | None:
        """What could be had, and what this process has: its own training is no reason to stop."""
        found = re.search(r"^MemAvailable: +(\d{1,15}) kB$", self._text("proc/meminfo") or "", re.M)
        if found is None:
            return None
        pages = (self._text("proc/self/statm") or "").split()
        resident, shared = (_integer(text) or 0 for text in (*pages, "0", "0", "0")[1:3])
        own = max(0, resident - shared) * os.sysconf("SC_PAGE_SIZE")
        return (int(found.group(1)) * 1024 + own) // 1_000_000

    def _link(self) -> Link | None:
        """The default route's interface; whether it is metered only if that matters."""
        routes = list(self._default_routes())
        if not routes and self._text("proc/net/route") is None:
            return None
        if not routes:
            return Link("", None)
        interface = min(routes)[1]
        patterns = self._config.metered_interfaces
        if self._config.metered != "wait":
            return Link(interface, None)
        if patterns is not None:
            return Link(interface, any(fnmatch(interface, pattern) for pattern in patterns))
        return Link(interface, self._said_metered(interface))

    def _default_routes(self) -> Iterator[tuple[int, str]]:
        """Metric and interface: `route` of IPv4, `ipv6_route`, as in proc(5)."""
        for line in (self._text("proc/net/route") or "").splitlines()[1:]:
            match line.split():
                case [name, "00000000", _, flags, _, _, metric, "00000000", *_] if _up(flags):
                    yield _integer(metric) or 0, name
        for line in (self._text("proc/net/ipv6_route") or "").splitlines():
            match line.split():
                case [there, "00", _, _, _, metric, _, _, flags, name] if (
                    not there.strip("0") and name != "lo" and _up(flags)
                ):
                    yield _hexadecimal(metric), name

    def _said_metered(self, interface: str) -> bool | None:
        """What NetworkManager says, and it is not asked all the time."""
        now_s = time.monotonic()
        if self._asked is None or self._asked[0] != interface or now_s >= self._asked[1]:
            said = self._ask(interface).strip().rpartition(":")[2]
            known = re.fullmatch(r"(yes|no|unknown)( \(guessed\))?", said)
            metered = said.startswith("yes") if known else None
            self._asked = (interface, now_s + _NETWORK_MANAGER_S, metered)
        return self._asked[2]

    def _time(self) -> Moment | None:
        """Local time, if the clock can be believed: a Raspberry Pi starts without one."""
        now_s = self._clock()
        timesyncd = "run/systemd/timesync"
        behind = now_s < self._clock_least
        unsynchronised = self._exists(timesyncd) and not self._exists(f"{timesyncd}/synchronized")
        battery_backed = self._number("sys/class/rtc/rtc0/since_epoch")
        kept = battery_backed is not None and abs(battery_backed - now_s) < _CLOCKS_APART_S
        if behind or (unsynchronised and not kept):
            return None
        local = time.localtime(now_s)
        return Moment(local.tm_wday, local.tm_hour * 60 + local.tm_min)

    def _exists(self, path: str) -> bool:
        return (self._root / path).exists()


def _content(path: Path) -> str | None:
    """Of a file; a pipe or a device keeps nobody waiting."""
    try:
        return read_regular(path).decode("utf-8", "replace").strip()
    except OSError:
        return None


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,18}", text) else None


def _hexadecimal(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"[0-9a-fA-F]{1,8}", text) else 0


def _up(flags: str) -> bool:
    return _hexadecimal(flags) & (_ROUTE_UP | _ROUTE_REJECT) == _ROUTE_UP


def _disk_mb(folder: Path) -> int | None:
    """Free where the folder is, or will be."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(there).free // 1_000_000
    except (OSError, StopIteration):
        return None


def _ask_network_manager(interface: str) -> str:
    """What `nmcli` says, empty if it cannot be asked."""
    try:
        return subprocess.run(
            ["nmcli", "-t", "-f", "GENERAL.METERED", "device", "show", interface],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_NETWORK_MANAGER_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
