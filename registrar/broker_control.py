"""What the running broker has to do about a change: read its lists anew, and let go of somebody.

Mosquitto 2.0.11 and later read access list and revoked certificates at SIGHUP: from then on a
revoked certificate is refused, and the rules hold on open connections, too. These stay open,
however; one ends when somebody else connects under its client id, and the registrar may have any.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError, UnansweredError
from fedtide.files import read_regular
from fedtide.inquiry import Inquiry
from fedtide.ownership import as_owner_of
from fedtide.topics import CLAIM_PREFIX, Topics
from fedtide.transport import Delivered
from registrar.broker_files import pid_file

CONFIGURATION_NAME = "mosquitto.conf"
ANSWER_S = 5.0
"""Longest time to be let in, or to be confirmed a message."""


def broker_process(folder: Path) -> int | None:
    """Process id of the broker that runs with the configuration in `folder`; None: none does.

    Raises:
        OSError: the configuration may not be read.
    """
    configuration = folder / CONFIGURATION_NAME
    path = pid_file(configuration.read_text(encoding="utf-8"))
    try:
        process = int(read_regular(path)) if path is not None else 0
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    # After a crash its number may be another program's.
    return process if any(_is_file(word, configuration) for word in command) else None


def _is_file(word: bytes, path: Path) -> bool:
    """Whether a word of a command line names this file, by whatever way through links."""
    try:
        return bool(word) and path.samefile(os.fsdecode(word))
    except OSError:
        return False


def reload_lists(folder: Path) -> str:
    """Let the broker read its lists anew; why it does not, empty: it does."""
    try:
        with as_owner_of(folder):
            process = broker_process(folder)
            if process is None:
                return "the broker does not run here"
            os.kill(process, signal.SIGHUP)
    except OSError as exc:
        return f"the broker cannot be told: {exc}"
    return ""


def end_connections(config: BrokerConfig, topics: Topics, names: Iterable[str]) -> dict[str, str]:
    """End every connection that goes by one of `names`, and clear what it has left on its topics.
    The names for which that failed, each with the reason: the others are not left for one, unless
    the broker does not answer at all.

    `config`: how the registrar reaches the listener for services, with its certificate.

    Raises:
        ConfigError: its files cannot be used.
    """
    failed: dict[str, str] = {}
    left = list(names)
    while left:
        try:
            _end(config, topics, left[0])
        except UnansweredError as exc:
            return failed | dict.fromkeys(left, str(exc.args[0]))
        except BrokerError as exc:
            failed[left[0]] = str(exc.args[0])
        del left[0]
    return failed


def _end(config: BrokerConfig, topics: Topics, name: str) -> None:
    with Inquiry(config, "revocation", client_id=name) as inquiry:
        inquiry.connect(ANSWER_S)  # in its place: the one before has to go
        own = [topics.enrol(name)]
        if not name.startswith(CLAIM_PREFIX):
            own += [topics.up(name), topics.presence(name)]
        open_tokens = {inquiry.link.publish(topic, b"", retain=True) for topic in own}
        for event in inquiry.events(ANSWER_S):
            if isinstance(event, Delivered):
                open_tokens.discard(event.token)
            if not open_tokens:
                return
        raise BrokerError(f"the broker confirmed nothing within {ANSWER_S:g} s")
