"""Root's commands write in a service's folder as the folder's owner, so that no file becomes root's
and no link in there leads root astray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_owner_of(path: Path) -> Iterator[None]:
    """As whoever owns `path`, if we were started by root; blocks may stand in one another.

    The whole process changes, not this thread alone.

    Raises:
        OSError: there is no such path, or it may not be looked at.
    """
    if os.getuid() != 0:
        yield
        return
    owner = path.stat()
    before = os.geteuid(), os.getegid(), os.getgroups()
    _become(owner.st_uid, owner.st_gid, [] if owner.st_uid else before[2])
    try:
        yield
    finally:
        _become(*before)


def _become(user_id: int, group_id: int, groups: Sequence[int]) -> None:
    os.seteuid(0)
    os.setegid(group_id)
    os.setgroups(list(groups))
    os.seteuid(user_id)
