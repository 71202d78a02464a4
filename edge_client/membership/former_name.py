"""What a device under its old name had saved, it keeps under the new one; but for its round.

The coordinator has invited the old name, which speaks no more: task and updates are given up.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import msgspec

from edge_client.durable import Durable
from edge_client.membership.renewal import FORMER_NAME
from edge_client.saved_session import STATE_NAME
from fedtide.errors import DamagedError, StateError
from fedtide.files import disk_errors_of, locked, write_atomically
from fedtide.generations import Generations
from fedtide.identity import Identity

_log = logging.getLogger(__name__)


def carry_over(identity: Identity, state_dir: Path) -> None:
    """Let the state of the former name be this one's, if there is any. Call it before anybody else
    opens the state.

    Raises:
        StateError: the disk is full or failing.
    """
    mark = identity.folder / FORMER_NAME
    with disk_errors_of(identity.folder):
        if not mark.exists():
            return
        former = mark.read_text(encoding="utf-8", errors="replace")
    if former != identity.name:
        _rename(Generations(state_dir / STATE_NAME), former, identity.name)
    with disk_errors_of(identity.folder):
        mark.unlink()


def hand_over(identity: Identity, state_dir: Path) -> None:
    """Let what this machine has saved be that of the device that it has become by joining anew,
    whatever its name was: now, or, while its client runs, when that starts again.

    Raises:
        StateError: the disk is full or failing.
    """
    durable = _saved(Generations(state_dir / STATE_NAME))
    if durable is None or durable.device in ("", identity.name):
        return
    write_atomically(identity.folder / FORMER_NAME, durable.device.encode())
    with suppress(StateError), locked(state_dir, "client"):
        carry_over(identity, state_dir)


def _rename(saved: Generations, former: str, name: str) -> None:
    durable = _saved(saved)
    if durable is None or durable.device != former:
        return
    lost = len(durable.outbox) + (durable.task is not None)
    if lost:
        _log.warning("%r was at work when it became %r: that is given up", former, name)
    saved.save(
        msgspec.json.encode(
            Durable(federation=durable.federation, device=name, installation=durable.installation)
        )
    )


def _saved(saved: Generations) -> Durable | None:
    """None also for what is damaged: whoever opens it will say so."""
    try:
        raw = saved.load()
        return None if raw is None else msgspec.json.decode(raw, type=Durable)
    except (DamagedError, msgspec.DecodeError, UnicodeDecodeError):
        return None
