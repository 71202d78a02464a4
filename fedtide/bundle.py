"""A bundle as the rest of the program sees it: a checked manifest and a way to read its files.

A bundle is either a directory (what `fedtide export` writes) or a set of blobs (what a device
downloaded). Both are addressed by content: a file is returned only if its SHA-256 is the one in
the manifest, and the bundle's own digest is that of `manifest.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedtide import limits
from fedtide.errors import BundleError, denied
from fedtide.files import open_regular
from fedtide.manifest import MANIFEST_NAME, Manifest, parse_manifest


def sha256_hex(content: bytes | memoryview) -> str:
    """Lower-case hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A manifest, its digest, and `fetch`, which returns the bytes of a listed file unchecked."""

    manifest: Manifest
    digest: str
    fetch: Callable[[str], bytes]

    def read(self, path: str) -> bytes:
        """Bytes of one listed file, checked against the manifest.

        Raises:
            BundleError: the file is not listed, is missing, or has another size or digest.
        """
        entry = self.manifest.files.get(path)
        if entry is None:
            raise BundleError(f"{path!r} is not a file of bundle {self.digest[:12]}")
        try:
            content = self.fetch(path)
        except OSError as exc:
            raise BundleError(
                f"{path!r} of bundle {self.digest[:12]} cannot be read: {exc}"
            ) from exc
        actual = sha256_hex(content)
        if len(content) != entry.size_bytes or actual != entry.sha256:
            raise BundleError(
                f"{path!r} is damaged: {len(content):,} bytes with SHA-256 {actual[:12]}…, "
                f"expected {entry.size_bytes:,} bytes with {entry.sha256[:12]}…",
                hint="copy or export the bundle again",
            )
        return content


def open_bundle(manifest_bytes: bytes, fetch: Callable[[str], bytes]) -> Bundle:
    """A bundle from its manifest and a way to read a file by its path in the manifest.

    Raises:
        BundleError: see `parse_manifest`.
    """
    return Bundle(parse_manifest(manifest_bytes), sha256_hex(manifest_bytes), fetch)


def open_stored_bundle(digest: str, read: Callable[[str], bytes]) -> Bundle:
    """A bundle whose files are blobs; `read` returns a blob by its digest.

    Raises:
        BundleError: see `parse_manifest`.
    """
    raw = read(digest)
    files = parse_manifest(raw).files
    return open_bundle(raw, lambda name: raw if name == MANIFEST_NAME else read(files[name].sha256))


def open_bundle_dir(directory: Path) -> Bundle:
    """Open the directory that `fedtide export` wrote. Files are checked when they are read.

    Raises:
        BundleError: no manifest there, or see `parse_manifest`.
    """
    try:
        raw = _read_file(directory / MANIFEST_NAME, limits.MANIFEST_BYTES_MAX)
    except PermissionError as exc:
        raise denied(exc) from exc
    except OSError as exc:
        raise BundleError(
            f"no bundle in {str(directory)!r}: {exc.strerror}",
            hint="a bundle is the directory that `fedtide export MODEL --out DIR` writes",
        ) from exc
    files = parse_manifest(raw).files

    def fetch(name: str) -> bytes:
        return (
            raw if name == MANIFEST_NAME else _read_file(directory / name, files[name].size_bytes)
        )

    return open_bundle(raw, fetch)


def _read_file(path: Path, bytes_max: int) -> bytes:
    """Not more than one byte over `bytes_max`, and only of a file: a device or a pipe may never
    end."""
    with open_regular(path) as file:
        return file.read(bytes_max + 1)
