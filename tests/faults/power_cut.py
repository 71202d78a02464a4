"""A disk that loses power: what may be left of a folder at any moment of a recorded history.

`Disk` watches a folder while production code works in it. It knows what was made durable: a
file's bytes by fsync of the file, names (files made, renamed, removed; folders made) by fsync of
their folder. Everything else may be lost at a power cut, wholly or in part: names in the order in
which they changed, bytes sector by sector. This is what POSIX allows, and more than ext4 does
(cf. Pillai et al. 2014, "All file systems are not created equal").

The bytes are compared with those at the last look, and it looks at every call that makes something
durable or changes a name; what happened in between could be torn in any way, too.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from unittest import mock

SECTOR_BYTES = 512
FOLDER = -1
"""In place of a file's number, for the name of a folder."""

Names = dict[str, int]
"""Path below the watched folder: number of the file."""
Deaf = Literal["", "file", "folder"]


class NameChange(NamedTuple):
    """One name that appeared, moved or vanished."""

    path: str
    file: int | None
    """None: removed."""
    moved_from: str | None = None

    def apply(self, names: Names) -> None:
        if self.moved_from is not None:
            names.pop(self.moved_from, None)
        if self.file is None:
            names.pop(self.path, None)
        else:
            names[self.path] = self.file


class Moment(NamedTuple):
    """What a power cut now would have to go by."""

    names: Names
    """Durable ones."""
    changes: tuple[NameChange, ...]
    versions: dict[int, tuple[bytes, ...]]
    """Of each file: what is durable, then what was seen since, newest last."""
    promised: int
    """How many promises had been made."""


class Disk:
    """See the module. A context manager that watches `folder`; `deaf` plants a forgotten fsync."""

    def __init__(
        self, folder: Path, deaf: Deaf = "", ignored: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._folder = folder
        self._deaf = deaf
        self._ignored = ignored
        """Files whose owner syncs where we cannot see it: SQLite."""
        self._names: Names = {}
        self._durable: Names = {}
        self._changes: list[NameChange] = []
        self._inodes: dict[int, int] = {}
        self._versions: dict[int, list[bytes]] = {}
        self.moments: list[Moment] = []
        self.promises: list[Any] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._look()
        self._durable = dict(self._names)
        self._changes.clear()
        for versions in self._versions.values():
            del versions[:-1]
        for name in ("fsync", "fdatasync"):
            self._patch(name, self._synced)
        for name in ("replace", "rename"):
            self._patch(name, self._renamed)
        for name in ("unlink", "remove", "mkdir"):
            self._patch(name, self._changed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._note()

    def promise(self, what: Any) -> None:
        """From now on the production code answers for `what`."""
        self.promises.append(what)
        self._note()

    def _patch(self, name: str, wrapped: Callable[..., Any]) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self._note()
            return wrapped(original, *arguments, **named)

        self._stack.enter_context(mock.patch.object(os, name, call))

    def _synced(self, original: Callable[..., Any], descriptor: int) -> None:
        original(descriptor)
        status = os.fstat(descriptor)
        opened = Path(f"/proc/self/fd/{descriptor}").resolve()
        if opened.is_dir():
            if self._deaf != "folder":
                self._sync_folder(opened)
        elif self._deaf != "file" and status.st_ino in self._inodes:
            versions = self._versions[self._inodes[status.st_ino]]
            del versions[:-1]

    def _sync_folder(self, folder: Path) -> None:
        kept = []
        for change in self._changes:
            paths = (change.path, change.moved_from or change.path)
            if folder in [(self._folder / path).parent for path in paths]:
                change.apply(self._durable)
            else:
                kept.append(change)
        self._changes = kept

    def _renamed(self, original: Callable[..., Any], old: Any, new: Any) -> None:
        original(old, new)
        source, target = self._relative(old), self._relative(new)
        if source is None or target is None:
            return
        file = self._names.pop(source)
        self._names[target] = file
        self._changes.append(NameChange(target, file, source))

    def _changed(self, original: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        self._look()

    def _relative(self, path: Any) -> str | None:
        full = Path(path).absolute()
        return str(full.relative_to(self._folder)) if full.is_relative_to(self._folder) else None

    def _note(self) -> None:
        self._look()
        versions = {file: tuple(seen) for file, seen in self._versions.items()}
        self.moments.append(
            Moment(dict(self._durable), tuple(self._changes), versions, len(self.promises))
        )

    def _look(self) -> None:
        """Compare the folder with what is known of it."""
        paths = {str(path.relative_to(self._folder)): path for path in self._folder.rglob("*")}
        found = {name: path for name, path in paths.items() if not self._ignored(name)}
        for name in sorted(self._names.keys() - found.keys(), reverse=True):
            self._forget_inode(self._names.pop(name))
            self._changes.append(NameChange(name, None))
        for name in sorted(found):
            path = found[name]
            if path.is_dir():
                if name not in self._names:
                    self._names[name] = FOLDER
                    self._changes.append(NameChange(name, FOLDER))
                continue
            self._look_at(name, path.stat().st_ino, path.read_bytes())

    def _look_at(self, name: str, inode: int, content: bytes) -> None:
        if name not in self._names:
            self._inodes[inode] = len(self._versions)
            self._names[name] = len(self._versions)
            self._versions[len(self._versions)] = [b""]
            self._changes.append(NameChange(name, self._names[name]))
        versions = self._versions[self._names[name]]
        if versions[-1] != content:
            versions.append(content)

    def _forget_inode(self, file: int) -> None:
        self._inodes = {inode: known for inode, known in self._inodes.items() if known != file}


def remains(moment: Moment, seed: int, mixes: int = 3) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a power cut may leave: a description, and the bytes of each file (None: a folder)."""
    draw = random.Random(seed)
    seen: set[int] = set()
    for count in range(len(moment.changes) + 1):
        names = dict(moment.names)
        for change in moment.changes[:count]:
            change.apply(names)
        for mode in ("old", "new", "grown", *(f"torn {n}" for n in range(mixes))):
            left = {
                name: None if file == FOLDER else _content(mode, moment.versions[file], draw)
                for name, file in sorted(names.items())
                if _reachable(name, names)
            }
            key = hash(tuple(left.items()))
            if key not in seen:
                seen.add(key)
                yield f"{count} of {len(moment.changes)} names, bytes {mode}", left


def _reachable(name: str, names: Names) -> bool:
    """A name in a folder whose own name was lost is lost with it."""
    parents = [str(parent) for parent in Path(name).parents][:-1]
    return all(names.get(parent) == FOLDER for parent in parents)


def _content(mode: str, versions: tuple[bytes, ...], draw: random.Random) -> bytes:
    old, new = versions[0], versions[-1]
    if mode == "old" or len(versions) == 1:
        return old
    if mode == "new":
        return new
    if mode == "grown":  # the size is on disk, the new bytes are not
        return old[: len(new)].ljust(len(new), b"\0")
    size = len(draw.choice(versions))
    sectors = []
    for start in range(0, size, SECTOR_BYTES):
        chosen = draw.choice(versions)[start : start + SECTOR_BYTES]
        sectors.append(chosen.ljust(min(SECTOR_BYTES, size - start), b"\0"))
    return b"".join(sectors)


def restore(left: dict[str, Any], folder: Path) -> Path:
    """Make the folder as the power cut left it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in left.items():
        path = folder / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    return folder


def sweep(
    disk: Disk, scratch: Path, check: Callable[[Path, list[Any]], None], *, mixes: int = 3
) -> int:
    """Reopen everything that a power cut at any moment may leave; how many were tried.

    `check` gets a folder and the promises made before the cut, and asserts that they hold.

    Raises:
        AssertionError: a promise is broken; says at which moment.
    """
    tried: set[int] = set()
    for index, moment in enumerate(disk.moments):
        for what, left in remains(moment, seed=index, mixes=mixes):
            key = hash((moment.promised, *left.items()))
            if key in tried:
                continue
            tried.add(key)
            try:
                check(restore(left, scratch), disk.promises[: moment.promised])
            except Exception as exc:
                where = f"power cut at moment {index} of {len(disk.moments)}, {what}"
                raise AssertionError(f"{where}: {type(exc).__name__}: {exc}") from exc
    return len(tried)
