"""Updates on their way in: at most one of each device, bounded by what its task allows."""

from __future__ import annotations

from fedtide.blobs import BlobStore, PartialBlob
from fedtide.messages import BlobRef, Chunk, Range, Update

FETCHES_MAX = 3
"""A blob that fails its digest this often is refused."""
RANGES_MAX = 1024
"""Most ranges in one `Want`."""


class _Upload:
    def __init__(self, update: Update, ref: BlobRef, partial: PartialBlob) -> None:
        self.update = update
        self.ref = ref
        self.partial = partial
        self.failures = 0


class Uploads:
    """The arriving update of each device."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._by_device: dict[str, _Upload] = {}

    def expect(self, device_id: str, update: Update) -> list[Range]:
        """Start or resume; the blocks still missing (none: call `finish`).

        `update` must have a blob, and its size must have been checked.
        """
        assert update.blob is not None
        if self._blobs.has(update.blob.digest):
            self._by_device.pop(device_id, None)
            return []
        upload = self._by_device.get(device_id)
        if upload is None or upload.ref != update.blob:
            partial = self._blobs.open_partial(update.blob)
            upload = self._by_device[device_id] = _Upload(update, update.blob, partial)
        return upload.partial.missing()[:RANGES_MAX]

    def arrived(self, device_id: str, chunk: Chunk) -> str | Update | None:
        """A chunk came: why it is refused, the update that it completes, or None: go on."""
        upload = self._by_device.get(device_id)
        if upload is None or upload.ref.digest != chunk.digest:
            return None  # of an upload that has ended: late duplicates are normal
        reason = upload.partial.accept(chunk)
        if reason is not None:
            return reason
        return upload.update if upload.partial.complete else None

    def finish(self, device_id: str, update: Update) -> bytes | str | None:
        """The content of a complete update, now on disk; or why it is refused for good.

        None: it failed its digest, and is expected anew (up to `FETCHES_MAX` times).
        """
        upload = self._by_device.get(device_id)
        if upload is None:
            assert update.blob is not None
            return self._blobs.read(update.blob.digest)
        content = upload.partial.finish(durable=True)
        if content is not None:
            del self._by_device[device_id]
            return content
        upload.failures += 1
        if upload.failures >= FETCHES_MAX:
            self._by_device.pop(device_id)
            self._blobs.discard(upload.ref.digest)
            return f"its content failed the digest {upload.failures} times"
        return None

    def clear(self) -> None:
        """The round has closed: forget what was on its way."""
        for upload in self._by_device.values():
            self._blobs.discard(upload.ref.digest)
        self._by_device.clear()
