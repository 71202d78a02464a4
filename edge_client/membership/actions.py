"""`fedtide device join` and `leave`: their flags; the work is imported when it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_client.membership.layout import add_layout_arguments

WAIT_S = 600


def add_actions(actions: argparse._SubParsersAction[Any]) -> None:
    """Declare both."""
    help_text = "on a device: join a federation with a join code, and start the client"
    join = actions.add_parser("join", help=help_text, description=help_text)
    join.add_argument(
        "code",
        nargs="+",
        metavar="CODE|FILE|-",
        help="the join code, the file that holds it, or - to read it from standard input",
    )
    join.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="this device's data, which stay here; other kinds of data: [data] in client.toml",
    )
    add_layout_arguments(join)
    join.add_argument(
        "--wait",
        type=_seconds,
        default=WAIT_S,
        metavar="SECONDS",
        help=f"longest wait for the server's answer ({WAIT_S})",
    )
    join.set_defaults(perform=_join)
    help_text = "on a device: stop the client, and remove all that joining has made; no data"
    leave = actions.add_parser("leave", help=help_text, description=help_text)
    add_layout_arguments(leave)
    leave.set_defaults(perform=_leave)


def _join(parsed: argparse.Namespace) -> int:
    from edge_client.membership.join_command import join

    return join(parsed)


def _seconds(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of seconds from 1")
    return int(text)


def _leave(parsed: argparse.Namespace) -> int:
    from edge_client.membership.leave_command import leave

    return leave(parsed)
