"""`fedtide status`: the fleet and its round, live, from what the broker retains."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedtide.access import CLIENT_TELLS, Access, entrance, is_taken
from fedtide.config import load_config
from fedtide.errors import BrokerError, ConfigError
from fedtide.inquiry import Inquiry
from fedtide.logs import escaped
from fedtide.ownership import become_owner_of
from fedtide.picture import Picture, Snapshot
from fedtide.picture_text import as_lines, headline, rows
from fedtide.topics import is_identifier
from fedtide.transport import (
    Broken,
    Connected,
    Disconnected,
    LinkEvent,
    Received,
    Refused,
    Unsealed,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

CONNECT_S = 10.0
FIRST_S = 5.0
"""Longest wait for the first retained message."""
QUIET_S = 0.5
"""Retained messages come at once: when none has come for this long, all have."""
REFRESH_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare flags."""
    parser.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="coordinator.toml or client.toml"
    )
    parser.add_argument("--once", action="store_true", help="print what is known now, and end")
    parser.add_argument("--json", action="store_true", help="one JSON object for each change")
    parser.add_argument("--plain", action="store_true", help="lines, on a terminal too")
    parser.add_argument("--federation", metavar="NAME", help="instead of the configuration's")
    parser.add_argument("--host", metavar="HOST", help="the broker's, and so on:")
    parser.add_argument("--port", type=int, metavar="PORT")
    parser.add_argument("--username", metavar="NAME", help="such as observer")
    for flag in ("--password-file", "--ca-file"):
        parser.add_argument(flag, type=Path, metavar="FILE")
    parser.add_argument("--identity", type=Path, metavar="FOLDER", help="instead of a user name")


def run(parsed: argparse.Namespace) -> int:
    """Show it until interrupted, or once.

    Raises:
        ConfigError: the configuration or the flags are wrong.
        BrokerError: the broker does not let us in, or nothing is known to it of this federation.
    """
    access = _access(parsed)
    if access.identity is not None:
        become_owner_of(access.identity)
    if is_taken(access.identity):
        raise ConfigError(
            "the client that runs with this identity has its one connection: looking would end it",
            hint=CLIENT_TELLS,
        )
    way = entrance(access)
    picture = Picture(access.federation, way.verified)
    with Inquiry(way.broker, "status", sealer=way.sealer) as inquiry:
        try:
            inquiry.connect(CONNECT_S)
            inquiry.listen(picture.filters())
            _first_look(inquiry, picture)
            if parsed.once:
                _print_once(picture.snapshot(_now_ms()), as_json=parsed.json)
                return 0
            _watch(inquiry, picture, parsed)
        except KeyboardInterrupt:
            if parsed.once:
                raise
    return 0


def _access(parsed: argparse.Namespace) -> Access:
    if parsed.config is not None:
        access = load_config(parsed.config, Access)
    elif parsed.federation and parsed.host:
        access = Access(parsed.federation)
    else:
        raise ConfigError(
            "status needs a configuration file, or --federation and --host",
            hint="fedtide status coordinator.toml",
        )
    if parsed.federation is not None and not is_identifier(parsed.federation):
        raise ConfigError(f"--federation {parsed.federation!r} is no name of a federation")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise ConfigError(f"--port is {parsed.port}, expected 1 to 65535")
    flags = ("host", "port", "username", "password_file", "ca_file")
    given = {name: getattr(parsed, name) for name in flags if getattr(parsed, name) is not None}
    broker = msgspec.structs.replace(access.broker, **given)
    identity, members = parsed.identity or access.identity, access.members
    return Access(parsed.federation or access.federation, broker, identity, members)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _first_look(inquiry: Inquiry, picture: Picture) -> None:
    """What is retained, up to a moment in which nothing comes.

    Raises:
        BrokerError: nothing is retained for this federation, or nothing that we may read.
    """
    until_s = time.monotonic() + FIRST_S
    while (left_s := until_s - time.monotonic()) > 0:
        event = inquiry.next_event(left_s if picture.empty else min(left_s, QUIET_S))
        if event is None:
            break
        _take(event, inquiry, picture)
    if not picture.empty:
        return
    snapshot = picture.snapshot(_now_ms())
    others = ", ".join(snapshot.others)
    raise BrokerError(
        f"nothing is known to the broker of a federation {snapshot.federation!r}"
        + (f"; coordinators are or were there for: {others}" if others else ""),
        hint=(
            "correct `federation`"
            if others
            else "start its coordinator, or use a user that may read: coordinator or observer"
        ),
    )


def _take(event: LinkEvent, inquiry: Inquiry, picture: Picture) -> str | None:
    """What an event tells; the reason if the link is gone, empty if it is back."""
    match event:
        case Received(topic, payload, retained):
            picture.hear(topic, payload, _now_ms(), retained=retained)
        case Unsealed(topic, reason):
            picture.refuse(topic, reason)
        case Connected():
            inquiry.listen(picture.filters())
            return ""
        case Disconnected(reason) | Refused(reason):
            return f"{reason}; trying again"
        case Broken(reason):
            raise BrokerError(reason)
        case _:
            pass
    return None


def _print_once(snapshot: Snapshot, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(snapshot).decode(), flush=True)
    else:
        print("\n".join(escaped(line) for line in as_lines(snapshot)), flush=True)


def _watch(inquiry: Inquiry, picture: Picture, parsed: argparse.Namespace) -> None:
    """Show what changes until interrupted."""
    if not (parsed.json or parsed.plain) and sys.stdout.isatty() and _has_rich():
        _watch_screen(inquiry, picture)
        return
    told: list[str] = []
    while True:
        snapshot = picture.snapshot(_now_ms())
        timeless = msgspec.structs.replace(
            snapshot,
            deadline_ms=None,
            devices=tuple(msgspec.structs.replace(d, heard_ms=None) for d in snapshot.devices),
        )
        lines = as_lines(timeless, aligned=False)
        if lines != told and parsed.json:
            _print_once(snapshot, as_json=True)
        elif lines != told:
            news = [line for line in lines if line not in told]
            print("\n".join(escaped(line) for line in news), flush=True)
        told = lines
        lost = _hear(inquiry, picture)
        if lost is not None and not parsed.json:
            print(escaped(lost) or "connected again", flush=True)


def _hear(inquiry: Inquiry, picture: Picture) -> str | None:
    """Take what comes within a moment; what became of the link, if anything."""
    lost: str | None = None
    for event in inquiry.events(REFRESH_S):
        said = _take(event, inquiry, picture)
        lost = lost if said is None else said
    return lost


def _has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def _watch_screen(inquiry: Inquiry, picture: Picture) -> None:
    from rich.live import Live

    lost = ""
    with Live(auto_refresh=False, screen=False) as live:
        while True:
            live.update(_screen(picture.snapshot(_now_ms()), lost), refresh=True)
            said = _hear(inquiry, picture)
            lost = lost if said is None else said


def _screen(snapshot: Snapshot, lost: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    first, *more = [escaped(line) for line in headline(snapshot)]
    table = Table(box=None, padding=(0, 1), expand=False)
    for title in ("device", "doing", "this round", "heard"):
        table.add_column(title, header_style="dim")
    styles = {"accepted": "green", "declined": "yellow", "rejected": "red", "quarantined": "red"}
    for row in rows(snapshot):
        style = styles.get(row.answer, "dim" if row.doing.startswith("offline") else "")
        table.add_row(*(Text(escaped(cell), style=style) for cell in row))
    parts: list[RenderableType] = [Text(first, style="bold"), *(Text(line) for line in more), table]
    return Group(*parts, *([Text(escaped(lost), style="bold red")] if lost else []))
