"""What of a bundle and a model is on this device, and what is still to be fetched.

Whoever names a blob says how large it is, and a download takes that much of the disk at once: so
every size is checked here against what such a thing may measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedtide import limits
from fedtide.blobs import BlobStore
from fedtide.bundle import Bundle, open_stored_bundle
from fedtide.errors import BundleError
from fedtide.manifest import Manifest, Runtimes, device_files
from fedtide.messages import BlobRef, Update


def needed_blobs(
    blobs: BlobStore, bundle: BlobRef, model: BlobRef | None, runtimes: Sequence[str]
) -> list[BlobRef]:
    """What a task needs, or any task (`model` None): only the manifest, until it is here and tells
    about the rest.

    Raises:
        BundleError: the manifest is unusable, offers none of the `runtimes` installed here, or
            something has a size that it cannot have.
    """
    if bundle.size_bytes > limits.MANIFEST_BYTES_MAX:
        raise BundleError(
            f"manifest.json is said to have {bundle.size_bytes:,} bytes, "
            f"at most {limits.MANIFEST_BYTES_MAX:,} are fetched"
        )
    if not is_intact(blobs, bundle):
        return [bundle]
    manifest = held_bundle(blobs, bundle).manifest
    needed = _runtime_blobs(manifest, runtimes)
    if model is None:
        return needed
    if model.size_bytes != manifest.shared_bytes:
        raise BundleError(
            f"the model is said to have {model.size_bytes:,} bytes, "
            f"the bundle's have {manifest.shared_bytes:,}"
        )
    return [*needed, model]


def _runtime_blobs(manifest: Manifest, runtimes: Sequence[str]) -> list[BlobRef]:
    refs = []
    for path in device_files(manifest, _runtime(manifest.runtimes, runtimes)):
        file = manifest.files[path]
        # The size of `rest` is that of its tensors: `parse_manifest`.
        if file.size_bytes > limits.GRAPH_BYTES_MAX and path != manifest.rest:
            raise BundleError(
                f"{path!r} is said to have {file.size_bytes:,} bytes, "
                f"at most {limits.GRAPH_BYTES_MAX:,} are fetched"
            )
        refs.append(BlobRef(file.sha256, file.size_bytes))
    return refs


def is_intact(blobs: BlobStore, ref: BlobRef) -> bool:
    """Whether a blob is here and undamaged; a damaged one is removed, to be fetched again.

    Raises:
        StateError: the disk is failing.
    """
    try:
        blobs.read(ref.digest)
    except FileNotFoundError:
        return False
    except OSError:
        blobs.discard(ref.digest)  # as good as damaged
        return False
    return True


def discard_unneeded(
    blobs: BlobStore, model: BlobRef, bundle: Bundle, outbox: Iterable[Update]
) -> None:
    """Bounded disk: keep this bundle, this model and the outbox.

    Raises:
        StateError: the disk is failing.
    """
    kept = {bundle.digest, model.digest}
    kept |= {entry.sha256 for entry in bundle.manifest.files.values()}
    kept |= {update.blob.digest for update in outbox if update.blob is not None}
    blobs.keep_only(kept)


def held_bundle(blobs: BlobStore, ref: BlobRef) -> Bundle:
    """The bundle whose manifest is here.

    Raises:
        BundleError: the manifest is unusable.
        FileNotFoundError: it is damaged, and has been removed.
    """
    return open_stored_bundle(ref.digest, blobs.read)


def stored_bundle(folder: Path) -> Bundle | None:
    """The bundle whose files are in this state folder, if there is one; nothing is changed."""
    if not (folder / "blobs").is_dir():
        return None
    blobs = BlobStore(folder, read_only=True)
    for digest in blobs.digests():
        try:
            if blobs.path(digest).stat().st_size <= limits.MANIFEST_BYTES_MAX:
                return open_stored_bundle(digest, blobs.read)
        except (BundleError, OSError):
            continue  # another file of the bundle, or one that is just being removed
    return None


def _runtime(offered: Runtimes, installed: Sequence[str]) -> str:
    usable = [name for name in installed if getattr(offered, name, None)]
    if not usable:
        raise BundleError(
            f"the bundle offers no runtime that is installed here "
            f"({', '.join(installed) or 'none'})"
        )
    return usable[0]
