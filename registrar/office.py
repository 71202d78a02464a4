"""What a command about devices works with: configuration, registry and authority, and one way to
let a change take effect everywhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fedtide.config import BrokerConfig, load_config
from fedtide.errors import AS_ROOT, ConfigError
from fedtide.files import disk_errors_of
from fedtide.identity import load_identity
from fedtide.ownership import as_owner_of
from fedtide.topics import Topics
from registrar.authority import Authority
from registrar.broker_control import end_connections, reload_lists
from registrar.config import RegistrarConfig
from registrar.enforcement import write_access, write_members
from registrar.registry import Registry


class Office(NamedTuple):
    """See the module; opened by `opened`."""

    config: RegistrarConfig
    registry: Registry
    authority: Authority

    @property
    def topics(self) -> Topics:
        """Of the federation."""
        return Topics(self.config.federation)

    def enforce(self, gone: Iterable[str] = (), at_ms: int | None = None) -> list[str]:
        """Let what the registry says take effect, now or as of `at_ms`, and end the connections of
        `gone`; what could not be done, and when it will be.

        The coordinator sees the list of members before its next message; the broker reads its
        lists before the next one after the signal.

        Raises:
            StateError: the disk is full, read-only or failing.
        """
        write_members(self.registry, self.config.members)
        folder = self.config.broker_dir
        federation, as_of_ms = self.config.federation, at_ms or now_ms()
        with disk_errors_of(folder), as_owner_of(folder):
            lost = write_access(self.registry, self.authority, folder, federation, as_of_ms)
        why = reload_lists(folder)
        if why:
            return [f"{why}: its lists are written, and hold from its next start"]
        open_ones = self._end(dict.fromkeys((*gone, *lost)))
        if not open_ones:
            return []
        return [
            f"open connections of {', '.join(open_ones)} are not ended: "
            f"{next(iter(open_ones.values()))}; what they say is not believed, but until they end "
            "they hear what the broker's lists allow their names, if anything; `device revoke` or "
            "`rotate-key` repeated ends those of its own name, a restart of the broker all"
        ]

    def _end(self, names: Iterable[str]) -> dict[str, str]:
        """End connections; those that still may be open, each with the reason."""
        names = list(names)
        if not names:
            return {}
        try:
            with as_owner_of(self.config.broker_dir):  # root reads the registrar's key
                return end_connections(self._link(), self.topics, names)
        except ConfigError as exc:
            return dict.fromkeys(names, str(exc.args[0]))

    def _link(self) -> BrokerConfig:
        identity = load_identity(self.config.identity)
        return identity.broker(self.config.broker)


@contextmanager
def opened(path: Path) -> Iterator[Office]:
    """The office of the registrar whose configuration is `path`. Root works in it as its owner.

    Raises:
        ConfigError: the configuration or the authority cannot be used, or not by this user.
        StateError: the registry cannot be used.
    """
    if not path.exists():
        raise ConfigError(
            f"there is no {str(path)!r}",
            hint="this machine is no server (`fedtide server init` makes it one), or its file is "
            "elsewhere: --config FILE",
        )
    config = load_config(path, RegistrarConfig)
    try:
        config.state_dir.stat()
        next(config.state_dir.iterdir(), None)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"there is no registrar's folder {str(config.state_dir)!r}",
            hint="`fedtide server init` makes it",
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f"the registrar's folder {str(config.state_dir)!r} is not yours to use: {exc.strerror}",
            hint=AS_ROOT,
        ) from exc
    with as_owner_of(config.state_dir):
        authority = Authority.open(config.authority)
        registry = Registry(config.state_dir)
        try:
            yield Office(config, registry, authority)
        finally:
            registry.close()


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
