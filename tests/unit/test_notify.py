"""What systemd hears of a service, on a real socket of the kind that it listens on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedtide.notify import STATUS_CHARS_MAX, Notify

PERIOD_MS = 300_000


class Ear:
    """systemd's end."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(address.replace("@", "\0"))
        self.environment = {"NOTIFY_SOCKET": address}

    def heard(self) -> list[str]:
        said = []
        with suppress(BlockingIOError):
            while True:
                said.append(self.sock.recv(4096).decode())
        return said


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    in_files = request.param == "path"
    ear = Ear(str(tmp_path / "notify") if in_files else f"@fedtide-test-{os.getpid()}")
    yield ear
    ear.sock.close()


def watched(ear: Ear, **more: str) -> Notify:
    return Notify({**ear.environment, "WATCHDOG_USEC": str(PERIOD_MS * 1000), **more})


def test_a_service_is_ready_once_and_says_what_it_waits_for(ear: Ear) -> None:
    notify = Notify(ear.environment)
    notify.ready(0)
    notify.time_reached(0, "waiting for devices")
    notify.time_reached(1, "waiting for devices")
    notify.time_reached(2, "round 1")
    notify.stopping()
    assert ear.heard() == ["READY=1", "STATUS=waiting for devices", "STATUS=round 1", "STOPPING=1"]
    assert notify.deadline_at_ms is None


def test_an_idle_loop_wakes_twice_a_period_and_feeds_each_time(ear: Ear) -> None:
    notify = watched(ear, WATCHDOG_PID=str(os.getpid()))
    notify.ready(1_000)
    assert ear.heard() == ["READY=1"]
    for _ in range(3):
        deadline_at_ms = notify.deadline_at_ms
        assert deadline_at_ms is not None
        notify.time_reached(deadline_at_ms, "")
        assert ear.heard() == ["WATCHDOG=1"]
        assert notify.deadline_at_ms == deadline_at_ms + PERIOD_MS // 2


def test_a_busy_loop_does_not_feed_each_time(ear: Ear) -> None:
    notify = watched(ear)
    notify.time_reached(0, "")  # nothing is fed before it is ready
    notify.ready(0)
    for at_ms in range(0, PERIOD_MS + 1, 100):
        notify.time_reached(at_ms, "")
    assert ear.heard() == ["READY=1", *["WATCHDOG=1"] * 4]


def test_nothing_is_fed_for_another_process(ear: Ear) -> None:
    notify = watched(ear, WATCHDOG_PID=str(os.getpid() + 1))
    notify.ready(0)
    notify.time_reached(PERIOD_MS, "")
    assert notify.deadline_at_ms is None
    assert ear.heard() == ["READY=1"]


def test_who_cannot_start_yet_asks_for_more_time(ear: Ear) -> None:
    Notify(ear.environment).starting("the disk is full")
    assert ear.heard() == ["EXTEND_TIMEOUT_USEC=600000000\nSTATUS=the disk is full"]


def test_a_status_is_one_line_of_bounded_length(ear: Ear) -> None:
    Notify(ear.environment).time_reached(0, "a\nREADY=1\n" + "b" * 10_000)
    (said,) = ear.heard()
    assert said.startswith("STATUS=a READY=1 bbb")
    assert len(said) == len("STATUS=") + STATUS_CHARS_MAX


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/not/there"}],
)
def test_whoever_was_not_started_by_systemd_is_silent_and_works(
    environment: dict[str, str],
) -> None:
    notify = Notify({**environment, "WATCHDOG_USEC": "many"})
    notify.ready(0)
    notify.time_reached(1, "at work")
    notify.stopping()
    assert notify.deadline_at_ms is None


def test_a_systemd_that_does_not_listen_delays_nobody(ear: Ear) -> None:
    notify = watched(ear)
    notify.ready(0)
    for number in range(10_000):  # more than its socket holds
        notify.time_reached(0, f"status {number}")
    assert ear.heard()[0] == "READY=1"
