"""What a service tells systemd (sd_notify(3)): that it is ready, what it waits for, that it lives.

Started by anything but systemd, it says nothing and costs nothing. The loop that does the work
feeds the watchdog, so that a loop which hangs is ended and started again:

    notify = Notify()
    ...                                        # state open, link started
    notify.ready()
    while True:
        item = inbox.get(timeout=...)          # until notify.deadline_at_ms at the latest
        ...
        notify.time_reached(now_ms, "waiting for devices")
    notify.stopping()
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

STATUS_CHARS_MAX = 300
STARTING_S = 600
"""More time to start, asked for by whoever cannot go on yet and is alive."""


class Notify:
    """The way to systemd, if there is one. Never raises: a service works without being heard."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address_of(environment.get("NOTIFY_SOCKET", ""))
        self._period_ms = _period_ms_of(environment) if self._address else 0
        self._fed_at_ms: int | None = None
        self._status = ""

    @property
    def deadline_at_ms(self) -> int | None:
        """When to call `time_reached` at the latest; None: whenever something else happens."""
        if not self._period_ms or self._fed_at_ms is None:
            return None
        return self._fed_at_ms + self._period_ms // 2

    def starting(self, status: str) -> None:
        """Not ready yet, for a reason, and alive."""
        self._say(f"EXTEND_TIMEOUT_USEC={STARTING_S * 1_000_000}", self._news(status))

    def ready(self, at_ms: int) -> None:
        """State is open and the link started. From now on the watchdog wants to be fed."""
        self._fed_at_ms = at_ms
        self._say("READY=1")

    def time_reached(self, at_ms: int, status: str) -> None:
        """The loop has come round; `status` is what it is at, or waits for.

        systemd hears of it if the status has changed or a quarter of the watchdog's period has
        passed, not each time. With `deadline_at_ms` a loop without other work wakes twice a period.
        """
        hungry = self._fed_at_ms is not None and (
            at_ms - self._fed_at_ms >= self._period_ms // 4 > 0
        )
        if hungry:
            self._fed_at_ms = at_ms
        self._say("WATCHDOG=1" if hungry else "", self._news(status))

    def stopping(self) -> None:
        """It was asked to stop, or ends by an error."""
        self._say("STOPPING=1")

    def _news(self, status: str) -> str:
        if not self._address or status == self._status:
            return ""
        self._status = status
        printable = "".join(char if char.isprintable() else " " for char in status)
        return f"STATUS={printable[:STATUS_CHARS_MAX]}"

    def _say(self, *lines: str) -> None:
        text = "\n".join(filter(None, lines))
        if not self._address or not text:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)


def _address_of(name: str) -> str:
    """Of a socket in the file system or, with `@`, of the kernel's abstract ones; else empty."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _period_ms_of(environment: Mapping[str, str]) -> int:
    """The watchdog's; 0: there is none, or it is another process's."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    try:
        return max(0, int(environment.get("WATCHDOG_USEC", "0")) // 1000)
    except ValueError:
        return 0
