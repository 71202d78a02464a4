"""Which files in a device's place are a device's: joining takes no others, leaving removes none.

The configuration proves it for everything, and so do the place of a service and a whole identity.
Without, each folder proves itself, since the one that was named may be anybody's.
"""

from __future__ import annotations

from pathlib import Path

from edge_client.membership.joining import NEW_KEY_NAME
from edge_client.membership.layout import Layout
from fedtide.errors import ConfigError, FedtideError
from fedtide.files import is_unfinished
from fedtide.identity import KEY_NAME, Identity, load_identity
from fedtide.keys import load_key, public_bytes
from fedtide.topics import is_device_name


def identity_of(layout: Layout) -> Identity | None:
    """The device's; None: there is none."""
    try:
        identity = load_identity(layout.identity)
    except (FedtideError, OSError):
        return None
    return identity if is_device_name(identity.name) else None


def ours_of(layout: Layout, identity: Identity | None) -> list[Path]:
    """What is there and was made by joining, in the order in which it goes: what proves it last."""
    lock = layout.home / "lock"
    if layout.user is not None or layout.config.exists() or identity is not None:
        ours = [layout.state, layout.joining, lock, layout.identity, layout.config]
    else:
        new_key = _key(layout.joining / NEW_KEY_NAME)
        half_made = new_key is not None and _key(layout.identity / KEY_NAME) == new_key
        ours = [layout.identity] if half_made else []
        ours += [layout.joining, lock] if new_key is not None else []
    return [path for path in ours if path.exists() or path.is_symlink()]


def require_free(layout: Layout) -> None:
    """Make sure that nothing of somebody else's is where joining, or the client, would write.

    Raises:
        ConfigError: there is something.
    """
    ours = ours_of(layout, identity_of(layout))
    for folder in (layout.state, layout.identity, layout.joining):
        if folder not in ours and _holds_something(folder):
            raise ConfigError(
                f"{str(folder)!r} is there already, and joining has not made it",
                hint="move it away, or join in a place of its own: --folder DIR",
            )


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return not all(map(is_unfinished, path.iterdir()))
    return path.exists() or path.is_symlink()


def _key(path: Path) -> bytes | None:
    """The public key of a private one, if it is one."""
    try:
        return public_bytes(load_key(path))
    except FedtideError:
        return None
