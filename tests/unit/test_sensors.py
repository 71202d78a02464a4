"""What is read of a machine, in trees as they are found on others, and in trees that are odd."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from edge_client.condition_check import check_conditions
from edge_client.conditions import ConditionsConfig, Link, Readings
from edge_client.hours import Moment
from edge_client.sensors import Sensors
from fedtide import files

NOW_S = time.mktime((2033, 5, 18, 22, 30, 0, 0, 0, -1))  # a Wednesday
METERED = ConditionsConfig(metered="wait")
ROUTES = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
DEFAULT = "{0}\t00000000\t010200C0\t0003\t0\t0\t{1}\t00000000\t0\t0\t0\n"
LOCAL = "{0}\t000200C0\t00000000\t0001\t0\t0\t{1}\t00FFFFFF\t0\t0\t0\n"
Tree = dict[str, str]

PI_4: Tree = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48199",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal",
    "sys/class/hwmon/hwmon0/temp1_input": "48199",
    "sys/class/hwmon/hwmon1/name": "rpi_volt",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
    "proc/meminfo": "MemTotal:        3884360 kB\nMemFree: 1 kB\nMemAvailable:    3300000 kB",
    "proc/net/route": ROUTES + DEFAULT.format("wlan0", 600) + LOCAL.format("wlan0", 600),
    "run/systemd/timesync/synchronized": "",
}
PI_5: Tree = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "55350",
    "sys/class/hwmon/hwmon0/name": "rp1_adc",
    "sys/class/hwmon/hwmon0/temp1_input": "99000",
    "sys/class/hwmon/hwmon1/name": "rpi_volt",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1",
    "sys/class/rtc/rtc0/since_epoch": "4711",  # without its battery it counts from its start
    "proc/net/route": ROUTES + DEFAULT.format("wlan0", 600) + DEFAULT.format("eth0", 100),
    "run/systemd/timesync/other": "",
}
LAPTOP: Tree = {
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": "0",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/capacity": "34",
    "sys/class/power_supply/BAT1/type": "Battery",
    "sys/class/power_supply/BAT1/status": "Unknown",
    "sys/class/power_supply/BAT1/capacity": "96",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery",
    "sys/class/power_supply/hidpp_battery_0/scope": "Device",
    "sys/class/power_supply/hidpp_battery_0/status": "Charging",
    "sys/class/power_supply/hidpp_battery_0/capacity": "5",
    "sys/class/thermal/thermal_zone0/type": "acpitz",
    "sys/class/thermal/thermal_zone0/temp": "25000",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone1/temp": "61000",
    "sys/class/thermal/thermal_zone2/type": "iwlwifi_1",
    "sys/class/thermal/thermal_zone2/temp": "70000",
    "sys/class/rtc/rtc0/since_epoch": str(round(NOW_S) + 2),
    "proc/net/route": ROUTES,
    "proc/net/ipv6_route": f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 00000001 "
    f"00000000 00000003    wwan0\n{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 "
    "00000000 00200200       lo\n",
    "run/systemd/timesync/other": "",
}
AMD_DESKTOP: Tree = {
    "sys/class/hwmon/hwmon3/name": "nvme",
    "sys/class/hwmon/hwmon3/temp1_input": "80000",
    "sys/class/hwmon/hwmon4/name": "k10temp",
    "sys/class/hwmon/hwmon4/temp1_input": "52000",
    "sys/class/hwmon/hwmon4/temp3_input": "57500",
}


class NetworkManager:
    """Counts how often it is asked."""

    def __init__(self, said: str) -> None:
        self.said = said
        self.asked: list[str] = []

    def __call__(self, interface: str) -> str:
        self.asked.append(interface)
        return self.said


def planted(root: Path, tree: Tree) -> Path:
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def read(
    root: Path, config: ConditionsConfig = METERED, said: str = "GENERAL.METERED:no (guessed)\n"
) -> Readings:
    sensors = Sensors(
        config, root, root=root, clock=lambda: NOW_S, ask_network_manager=lambda _: said
    )
    return sensors.read()


def test_a_pi_4_of_bookworm(tmp_path: Path) -> None:
    found = read(planted(tmp_path, PI_4))
    assert found.power == "mains"
    assert found.battery_percent is None
    assert found.temperature_c == 48.199
    assert found.throttled == 0x50005
    assert found.memory_mb == 3_300_000 * 1024 // 1_000_000
    assert found.link == Link("wlan0", False)
    assert found.time == Moment(2, 22 * 60 + 30)


def test_a_pi_5_without_a_battery_for_its_clock(tmp_path: Path) -> None:
    found = read(planted(tmp_path, PI_5), said="GENERAL.METERED:yes (guessed)\n")
    assert found.temperature_c == 55.35
    assert found.throttled == 1, "its supply's alarm"
    assert found.link == Link("eth0", True), "the smaller metric"
    assert found.time is None
    planted(tmp_path, {"run/systemd/timesync/synchronized": ""})
    assert read(tmp_path).time == Moment(2, 22 * 60 + 30)


def test_a_pi_5_whose_tree_names_the_bus(tmp_path: Path) -> None:
    path = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
    assert read(planted(tmp_path, {**PI_5, path: "0"})).throttled == 0


def test_a_laptop_on_two_batteries(tmp_path: Path) -> None:
    found = read(planted(tmp_path, LAPTOP), said="GENERAL.METERED:yes\n")
    assert found.power == "battery"
    assert found.battery_percent == 65, "the mouse's is another"
    assert found.temperature_c == 61
    assert found.throttled is None
    assert found.link == Link("wwan0", True)
    assert found.time == Moment(2, 22 * 60 + 30), "its own clock agrees"
    planted(tmp_path, {"sys/class/power_supply/AC/online": "1"})
    assert read(tmp_path).power == "mains"


def test_a_desktop_and_a_virtual_machine(tmp_path: Path) -> None:
    found = read(planted(tmp_path / "desktop", AMD_DESKTOP))
    assert found.temperature_c == 57.5
    empty = read(planted(tmp_path / "virtual", {"proc/net/route": ROUTES}))
    assert (empty.power, empty.temperature_c, empty.throttled) == ("mains", None, None)
    assert empty.link == Link("", None)


class NotNow(io.RawIOBase):
    """As a driver's file that answers EAGAIN."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> None:
        return None


def test_a_sensor_that_cannot_answer_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = files.open_regular

    def open_regular(path: Path, **links: Any) -> BinaryIO:
        busy = path.match("thermal_zone0/temp")
        return io.BufferedReader(NotNow()) if busy else opened(path, **links)

    monkeypatch.setattr(files, "open_regular", open_regular)
    with pytest.raises(BlockingIOError, match="thermal_zone0/temp"):
        files.read_regular(planted(tmp_path, PI_5) / "sys/class/thermal/thermal_zone0/temp")
    found = read(tmp_path)
    assert (found.temperature_c, found.throttled) == (None, 1)


@pytest.mark.parametrize(
    ("status", "power"),
    [("Discharging", "battery"), ("Charging", "mains"), ("Full", "mains"), ("?", None), ("", None)],
)
def test_a_battery_that_alone_tells_of_power(
    tmp_path: Path, status: str, power: str | None
) -> None:
    """As of a board for an uninterruptible supply."""
    battery = "sys/class/power_supply/battery"
    tree = {f"{battery}/type": "Battery", f"{battery}/status": status}
    assert read(planted(tmp_path, tree)).power == power


@pytest.mark.parametrize("patterns", [("wwan*",), ("usb0", "wwan0")], ids=["a pattern", "a list"])
def test_a_list_of_metered_interfaces_needs_no_network_manager(
    tmp_path: Path, patterns: tuple[str, ...]
) -> None:
    config = ConditionsConfig(metered="wait", metered_interfaces=patterns)
    planted(tmp_path, LAPTOP)
    manager = NetworkManager("no")
    sensors = Sensors(config, tmp_path, root=tmp_path, ask_network_manager=manager)
    assert sensors.read().link == Link("wwan0", True)
    assert manager.asked == []


@pytest.mark.parametrize("said", ["", "Error: NetworkManager is not running.\n", "maybe\n" * 9_999])
def test_a_network_manager_that_says_nothing(tmp_path: Path, said: str) -> None:
    assert read(planted(tmp_path, PI_4), said=said).link == Link("wlan0", None)


def test_network_manager_is_asked_twice_a_minute_and_only_if_it_matters(tmp_path: Path) -> None:
    planted(tmp_path, PI_4)
    manager = NetworkManager("yes")
    for config in (METERED, ConditionsConfig()):
        sensors = Sensors(config, tmp_path, root=tmp_path, ask_network_manager=manager)
        for _ in range(5):
            sensors.read()
    assert manager.asked == ["wlan0"]


def cpu(root: Path, user: int, idle: int, own: int) -> None:
    planted(
        root,
        {
            "proc/stat": f"cpu  {user} 0 0 {idle} 7 0 0 0 0 0\ncpu0 1 2 3",
            "proc/self/stat": f"42 (fed tide) x) R 1 1 1 0 -1 4 1 0 0 0 {own} 0 0 0 20 0 9",
        },
    )


def test_the_load_is_that_of_others(tmp_path: Path) -> None:
    cpu(tmp_path, user=1_000, idle=1_000, own=10)
    sensors = Sensors(METERED, tmp_path, root=tmp_path)
    loads = []
    for user, idle, own in [
        (1_100, 1_100, 110),  # all that was done, we did
        (1_200, 1_200, 160),  # half of it, and it was half of the time
        (1_300, 1_200, 160),  # others, all the time
        (1_300, 1_200, 160),  # no time has passed
        (1_290, 1_300, 170),  # a counter that goes back
        (1_300, 1_310, 900),  # we, more than there was
    ]:
        cpu(tmp_path, user, idle, own)
        loads.append(sensors.read().load)
    assert loads == [0.0, 0.25, 1.0, None, 0.0, 0.0]
    (tmp_path / "proc/stat").write_text("cpu  1 2\n")
    assert sensors.read().load is None


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    sensors = Sensors(METERED, tmp_path)
    until_s = time.process_time() + 0.05
    while time.process_time() < until_s:
        pass
    found = sensors.read()
    assert found.load is not None
    assert 0 <= found.load <= 1
    assert found.memory_mb is not None
    assert found.disk_mb is not None


def test_the_memory_that_this_process_has_is_no_lack(tmp_path: Path) -> None:
    planted(tmp_path, {**PI_4, "proc/self/statm": "900000 110000 10000 1 0 5 0"})
    page = os.sysconf("SC_PAGE_SIZE")
    assert read(tmp_path).memory_mb == (3_300_000 * 1024 + 100_000 * page) // 1_000_000


@pytest.mark.parametrize(
    "content",
    ["", "-274000", "2147483647", "hot", "1e9999", "9" * 10_000, "\x00\xff", "٤٢", "48\n199", "+5"],
)
def test_nonsense_is_no_reading(tmp_path: Path, content: str) -> None:
    """In every file at once, none of which ends the client."""
    for tree in (PI_4, PI_5, LAPTOP, AMD_DESKTOP):
        odd = dict.fromkeys((*tree, "proc/stat", "proc/self/stat", "proc/self/statm"), content)
        assert read(planted(tmp_path, odd)).temperature_c is None


def test_what_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    for name in (*PI_4, *LAPTOP):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.mkfifo(path)
    found = read(tmp_path)
    assert (found.temperature_c, found.throttled, found.memory_mb) == (None, None, None)
    for name in {*PI_4, *LAPTOP}:
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    assert read(tmp_path).temperature_c is None


def test_a_sensor_that_vanishes(tmp_path: Path) -> None:
    sensors = Sensors(METERED, tmp_path, root=planted(tmp_path, PI_4))
    assert sensors.read().temperature_c == 48.199
    for name in PI_4:
        (tmp_path / name).unlink()
    assert sensors.read().temperature_c is None


def test_a_clock_behind_its_own_programme_is_not_set(tmp_path: Path) -> None:
    sensors = Sensors(METERED, tmp_path, root=tmp_path, clock=lambda: 86_400.0)
    assert sensors.read().time is None


# ---- the doctor ----


def test_the_doctor_lists_each_condition_and_what_else_there_is(tmp_path: Path) -> None:
    config = ConditionsConfig(
        mains=True, temperature_c_max=40, battery_percent_min=50, load_max=1.0, memory_mb_min=9_999
    )
    planted(tmp_path, PI_4)
    found = list(check_conditions(config, tmp_path, root=tmp_path))
    assert [(finding.level, finding.what) for finding in found] == [
        ("ok", "conditions.mains: on mains"),
        ("ok", "conditions.battery_percent_min: on mains"),
        ("warning", "conditions.temperature_c_max: 48 °C, trains again below 35 °C"),
        (
            "warning",
            "conditions.throttled: the supply's voltage is too low and the processor is throttled, "
            "trains again when the firmware reports none of this",
        ),
        ("problem", "conditions.load_max cannot be judged: the load is unknown: tasks wait for it"),
        (
            "warning",
            "conditions.memory_mb_min: 3379 MB of memory available, trains again with 9999 MB",
        ),
        ("ok", found[-1].what),
    ]
    assert found[-1].what.startswith("here and now: on mains, 48 °C, firmware flags 0x50005, 3379")


def test_the_doctor_of_a_device_without_conditions(tmp_path: Path) -> None:
    (found,) = check_conditions(ConditionsConfig(), tmp_path, root=tmp_path)
    assert found.level == "ok"
    assert found.what.startswith("here and now: on mains, ")
