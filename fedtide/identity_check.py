"""Whether an identity is good for a while, and whether others speak where they may not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedtide.checkup import Finding, ok, problem, warning
from fedtide.picture import Snapshot
from fedtide.topics import Topics

SOON = timedelta(days=30)
"""A certificate renews itself long before this is left."""


def check_identity(folder: Path, topics: Topics) -> Iterator[Finding]:
    """Certificate and key set.

    Raises:
        ConfigError: the identity cannot be used.
        StateError: the key set cannot be read.
    """
    from fedtide.identity import load_identity  # who has no identity needs no cryptography
    from fedtide.trust import KeyRing

    identity = load_identity(folder)
    left = identity.over_at - datetime.now(UTC)
    said = f"the certificate of {identity.name!r} is valid until {identity.over_at:%Y-%m-%d}"
    if left <= timedelta():
        yield problem(
            f"{said}: by this machine's clock it is over",
            "check the clock (timedatectl); if it is right, a device joins anew, and a "
            "coordinator gets another certificate by `fedtide server rotate-key`",
        )
    elif left < SOON:
        yield warning(
            said, "it should have renewed itself: look into the registrar's log, and this one's"
        )
    else:
        yield ok(said)
    version = KeyRing(topics, identity, read_only=True).version
    if version:
        yield ok(f"it knows key set {version} of the coordinator")
    else:
        yield warning(
            "it knows no key set of the coordinator",
            "nothing, if a coordinator is online: a running client takes the one that it publishes",
        )


def check_refused(snapshot: Snapshot) -> Iterator[Finding]:
    """What was heard without a valid seal."""
    if snapshot.refused_count:
        yield warning(
            f"{snapshot.refused_count} messages at the broker have no valid seal; the newest on "
            f"{snapshot.refused_newest}",
            "it is left behind by a device that was revoked, or somebody speaks who should not: "
            "nobody listens to it; see who else can write at this broker",
        )
