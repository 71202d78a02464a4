"""Puts a bundle on disk: complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fedtide.bundle import open_bundle_dir, sha256_hex
from fedtide.errors import BundleError, ConfigError, StateError
from fedtide.manifest import MANIFEST_NAME, File


def check_target(out: Path) -> None:
    """Refuse a target that is something else than nothing, an empty folder or a bundle.

    Raises:
        ConfigError: writing there would destroy foreign files.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{str(out)!r} exists and is not a directory")
    if any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"{str(out)!r} is not empty and holds no bundle; nothing was written",
            hint="choose another --out, or empty that directory yourself",
        )
    if any(out.iterdir()):
        _refuse_foreign_files(out)


def _refuse_foreign_files(out: Path) -> None:
    """A bundle is replaced as a whole: what is not part of it would be lost."""
    try:
        ours = {MANIFEST_NAME, *open_bundle_dir(out).manifest.files}
    except BundleError:
        ours = {MANIFEST_NAME}
    files = (path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    foreign = sorted(set(files) - ours)
    if foreign:
        raise ConfigError(
            f"{str(out)!r} holds {foreign[0]!r}, which is no part of the bundle there; "
            "nothing was written",
            hint="choose another --out, or move that file away",
        )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place if the block ends without an error.

    A reader sees the old bundle, for a moment none, or the whole new one.

    Raises:
        ConfigError: see `check_target`, or the folder cannot be made.
    """
    check_target(out)
    created = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as exc:
        raise ConfigError(f"cannot write beside {str(out)!r}: {exc.strerror}") from exc
    try:
        staging.chmod(0o755)  # mkdtemp's 0700 would hide the bundle from a web server
        yield staging
        old = staging.with_name(f"{staging.name}-old")
        if out.exists():
            out.rename(old)
        staging.rename(out)
        _sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in created:
            with suppress(OSError):  # it holds the new bundle
                folder.rmdir()


def write_files(folder: Path, contents: Mapping[str, bytes]) -> dict[str, File]:
    """Write and sync each file; their manifest entries, sorted by path.

    Raises:
        StateError: the disk is full or failing.
    """
    entries = {}
    try:
        for name, content in sorted(contents.items()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            entries[name] = File(len(content), sha256_hex(content))
        for parent in {(folder / name).parent for name in contents}:
            _sync(parent)
    except OSError as exc:
        raise StateError(
            f"cannot write in {str(folder.parent)!r}: {exc.strerror}",
            hint="free space on this disk, or make it writable; nothing was changed",
        ) from exc
    return entries


def _sync(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
