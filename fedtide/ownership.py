"""Root's commands write in a service's folder as the folder's owner, so that no file becomes root's
and no link in there leads root astray."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_LINKS_MAX = 40
"""As Linux has it (path_resolution(7))."""


@contextmanager
def as_owner_of(path: Path) -> Iterator[None]:
    """As whoever owns `path`, if we were started by root; blocks may stand in one another.

    On the way from `/` the first that is not root's decides: who owns that can exchange all that is
    below, by a link, say, to what is root's. The whole process changes, not this thread alone.

    Raises:
        OSError: all of the way is root's, and there is no such path.
    """
    if os.getuid() != 0:
        yield
        return
    before = os.geteuid(), os.getegid(), os.getgroups()
    os.seteuid(0)  # whoever we are now may not look into the folders of another
    try:
        owner = _owner(path)
        _become(owner.st_uid, owner.st_gid, [] if owner.st_uid else before[2])
        yield
    finally:
        _become(*before)


def _owner(path: Path) -> os.stat_result:
    """Of the first on the way to `path` that is not root's; only root's links are followed."""
    here, found = Path("/"), Path("/").lstat()
    left = list(reversed(path.absolute().parts))
    links_left = _LINKS_MAX
    while left:
        there = here / left.pop()
        found = there.lstat()
        if found.st_uid:
            break
        if not stat.S_ISLNK(found.st_mode):
            here = there
            continue
        links_left -= 1
        if links_left < 0:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        left += reversed(there.readlink().parts)
    return found


def _become(user_id: int, group_id: int, groups: Sequence[int]) -> None:
    os.seteuid(0)
    os.setegid(group_id)
    os.setgroups(list(groups))
    os.seteuid(user_id)
