"""What a device under its old name had saved, it keeps under the new one; but for its round.

The coordinator has invited the old name, which speaks no more: task and updates are given up.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edge_client.durable import Durable
from edge_client.membership.renewal import FORMER_NAME
from edge_client.saved_session import STATE_NAME
from fedtide.errors import DamagedError
from fedtide.files import disk_errors_of
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


def _rename(saved: Generations, former: str, name: str) -> None:
    try:
        raw = saved.load()
        durable = None if raw is None else msgspec.json.decode(raw, type=Durable)
    except (DamagedError, msgspec.DecodeError, UnicodeDecodeError):
        return  # whoever opens it will say so
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
