"""What of a bundle and a model is on this device, and what is still to be fetched."""

from __future__ import annotations

from collections.abc import Sequence

from fedtide.blobs import BlobStore
from fedtide.bundle import Bundle, open_stored_bundle
from fedtide.errors import BundleError
from fedtide.manifest import Runtimes, runtime_files
from fedtide.messages import BlobRef


def missing_blobs(
    blobs: BlobStore, bundle: BlobRef, model: BlobRef, runtimes: Sequence[str]
) -> list[BlobRef]:
    """Blobs that are not here yet: the manifest first, for it names the files.

    Raises:
        BundleError: the manifest is unusable, or offers none of the `runtimes` installed here.
    """
    refs = [bundle]
    if is_intact(blobs, bundle):
        manifest = held_bundle(blobs, bundle).manifest
        refs = [
            BlobRef(manifest.files[path].sha256, manifest.files[path].size_bytes)
            for path in runtime_files(manifest, _runtime(manifest.runtimes, runtimes))
        ]
    return [ref for ref in (*refs, model) if not blobs.has(ref.digest)]


def is_intact(blobs: BlobStore, ref: BlobRef) -> bool:
    """Whether a blob is here and undamaged; a damaged one is removed, to be fetched again."""
    try:
        blobs.read(ref.digest)
    except FileNotFoundError:
        return False
    return True


def held_bundle(blobs: BlobStore, ref: BlobRef) -> Bundle:
    """The bundle whose manifest is here.

    Raises:
        BundleError: the manifest is unusable.
        FileNotFoundError: it is damaged, and has been removed.
    """
    return open_stored_bundle(ref.digest, blobs.read)


def _runtime(offered: Runtimes, installed: Sequence[str]) -> str:
    usable = [name for name in installed if getattr(offered, name, None)]
    if not usable:
        raise BundleError(
            f"the bundle offers no runtime that is installed here "
            f"({', '.join(installed) or 'none'})"
        )
    return usable[0]
