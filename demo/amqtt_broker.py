"""amqtt in a process of its own: `python -m demo.amqtt_broker CONFIG.json`.

For machines where nobody may install a broker, and for tests of the MQTT 3.1.1 path. Loopback
only. Nobody is anonymous: amqtt forgets what it queued for anonymous clients, and a federation's
topics are its own. The configuration file is `{"port": ..., "passwords": {user: sha256-hex}}`;
the passwords are long and random, so a plain digest guards them as well as a slow one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin


class PasswordPlugin(BaseAuthPlugin):  # type: ignore[misc]
    """Only known users with the right password."""

    async def authenticate(self, *, session: Any) -> bool:
        """Whether this session's user name and password belong together."""
        known = self.config.passwords.get(session.username or "", "")
        offered = hashlib.sha256((session.password or "").encode()).hexdigest()
        return hmac.compare_digest(known, offered)

    @dataclass
    class Config:
        """User names and the SHA-256 of their passwords."""

        passwords: dict[str, str] = field(default_factory=dict)


class TopicsPlugin(BaseTopicPlugin):  # type: ignore[misc]
    """The rules of deploy/mosquitto/acl, for a broker that has no such file."""

    async def topic_filtering(
        self, *, session: Any = None, topic: str | None = None, action: Any = None
    ) -> bool:
        """Whether this user may publish, subscribe to or receive this topic."""
        user = (session.username if session is not None else None) or ""
        return user != "" and may(user, action == Action.PUBLISH, topic or "")

    @dataclass
    class Config:
        """Nothing to configure."""


def may(user: str, writes: bool, topic: str) -> bool:
    """Whether `user` may write to `topic`, or read it."""
    if user == "coordinator":
        return topic.startswith("fedtide/")
    if user == "observer":
        return topic.startswith("fedtide/") and not writes
    levels = topic.split("/")
    if levels[:2] != ["fedtide", "1"] or len(levels) < 4:
        return False
    kind, rest = levels[3], levels[4:]
    if writes:
        return kind in ("up", "presence") and rest == [user]
    return (kind == "down" and rest == [user]) or kind == "blob" or (kind == "beacon" and not rest)


class _Steady(dict[str, list[Any]]):
    """amqtt's subscriptions, safe to walk over while clients come and go.

    amqtt 0.12.1 awaits in the middle of a walk; a subscription that is made meanwhile raises, and
    the message that was being passed on is lost to everybody.
    """

    def items(self) -> Any:
        """A copy, to be walked over."""
        return [(topic, list(subscribers)) for topic, subscribers in super().items()]

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().__iter__()))


async def serve(port: int, passwords: dict[str, str]) -> None:
    """Run until SIGTERM or SIGINT."""
    here = "demo.amqtt_broker"
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "timeout_disconnect_delay": 2,
            "plugins": {
                f"{here}.PasswordPlugin": {"passwords": passwords},
                f"{here}.TopicsPlugin": {},
            },
        }
    )
    broker._subscriptions = _Steady()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await broker.start()
    await stopped.wait()
    await broker.shutdown()


def main() -> int:
    """Serve as the configuration file says."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    config = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(serve(config["port"], config["passwords"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
