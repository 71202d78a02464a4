"""Root's commands work in a service's folder as the folder's owner, so that no file becomes root's
and no link in there leads root astray; those that only look become that one for good."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedtide.errors import ConfigError

_LINKS_MAX = 40
"""As Linux has it (path_resolution(7))."""


@contextmanager
def as_owner_of(path: Path) -> Iterator[None]:
    """As whoever owns `path`, or will when it is made, if we were started by root; blocks may stand
    in one another.

    On the way from `/` the first that is not root's decides: who owns that can exchange all that is
    below, by a link, say, to what is root's. The whole process changes, not this thread alone.

    Raises:
        OSError: there are too many links on the way.
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


def become_owner_of(path: Path) -> None:
    """As `as_owner_of`, for good and with that user's groups: what the service could not read we
    cannot either, and what we run, such as a function of the device's owner, cannot become root
    again.

    Raises:
        OSError: there are too many links on the way.
        ConfigError: this Python is one that they cannot read, and more of it will be needed.
    """
    if os.getuid() != 0 or not (owner := _owner(path)).st_uid:
        return
    group_id, groups = owner.st_gid, [owner.st_gid]
    with suppress(KeyError):
        account = pwd.getpwuid(owner.st_uid)
        group_id, groups = account.pw_gid, os.getgrouplist(account.pw_name, account.pw_gid)
    os.setgroups(groups)
    os.setresgid(group_id, group_id, group_id)
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    for of_python in (os.__file__, __file__):
        if not os.access(of_python, os.R_OK):
            raise ConfigError(
                f"this looks as the owner of {str(path)!r} (user id {owner.st_uid}), who cannot "
                f"read {of_python!r} of the Python that runs this",
                hint="repeat it with a fedtide that every user can run, as docs/deploy.md says",
            )


def _owner(path: Path) -> os.stat_result:
    """Of the first on the way to `path` that is not root's, or the last that is there; only root's
    links are followed."""
    here, found = Path("/"), Path("/").lstat()
    left = list(reversed(path.absolute().parts))
    links_left = _LINKS_MAX
    while left:
        there = here / left.pop()
        try:
            found = there.lstat()
        except FileNotFoundError:
            break
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
