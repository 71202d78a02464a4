"""Updates on their way in: at most one of each device, bounded by what its task allows."""

from __future__ import annotations

from collections.abc import Callable

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
    """The arriving update of each device; devices that send the same bytes share one blob."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._by_device: dict[str, _Upload] = {}
        self._round_id: int | None = None

    def begin_round(self, round_id: int, welcome: Callable[[str, Update], bool]) -> None:
        """Forget what was on its way and is not `welcome` any more.

        After a restart, what had arrived stays for a round, until its device offers it again.
        """
        if round_id == self._round_id:
            return
        first, self._round_id = self._round_id is None, round_id
        for device_id, upload in list(self._by_device.items()):
            if not welcome(device_id, upload.update):
                self._drop(device_id)
        if not first:
            self._blobs.discard_arriving(but={u.ref.digest for u in self._by_device.values()})

    def forget(self, device_id: str) -> None:
        """This device's update can count no more."""
        if device_id in self._by_device:
            self._drop(device_id)

    def expect(self, device_id: str, update: Update) -> list[Range]:
        """Start or resume; the blocks still missing (none: call `finish`).

        `update` must have a blob, and its size must have been checked.
        """
        ref = update.blob
        assert ref is not None
        upload = self._by_device.get(device_id)
        if upload is not None and upload.ref != ref:
            self._drop(device_id)
            upload = None
        if self._blobs.has(ref.digest):
            return []
        if upload is None:
            same = (other.partial for other in self._by_device.values() if other.ref == ref)
            partial = next(same, None) or self._blobs.open_partial(ref)
            upload = self._by_device[device_id] = _Upload(update, ref, partial)
        upload.update = update  # the same bytes may answer a newer task
        return upload.partial.missing()[:RANGES_MAX]

    def arrived(self, device_id: str, chunk: Chunk) -> str | Update | None:
        """A chunk came: why it is refused, the update that it completes, or None: go on."""
        upload = self._by_device.get(device_id)
        if upload is None or upload.ref.digest != chunk.digest:
            return None  # of an upload that has ended: late duplicates are normal
        if self._blobs.has(upload.ref.digest):
            return upload.update  # another device has sent the same bytes
        reason = upload.partial.accept(chunk)
        if reason is not None:
            return reason
        return upload.update if upload.partial.complete else None

    def content(self, device_id: str, update: Update) -> bytes | str | None:
        """The complete content; or why it is refused for good.

        None: it is damaged, and is expected anew (up to `FETCHES_MAX` times).
        """
        assert update.blob is not None
        if self._blobs.has(update.blob.digest):
            try:
                return self._blobs.read(update.blob.digest)
            except FileNotFoundError:
                return None
        upload = self._by_device[device_id]
        content = upload.partial.content()
        if content is not None:
            return content
        upload.failures += 1
        if upload.failures >= FETCHES_MAX:
            return f"its content failed the digest {upload.failures} times"
        return None

    def keep(self, device_id: str) -> None:
        """The content counts: it is on disk for good."""
        upload = self._by_device.pop(device_id, None)
        if upload is not None and not self._blobs.has(upload.ref.digest):
            upload.partial.keep(durable=True)

    def reject(self, update: Update) -> None:
        """Forget these bytes, whoever is sending them; what was kept before stays."""
        assert update.blob is not None
        self._by_device = {
            name: upload for name, upload in self._by_device.items() if upload.ref != update.blob
        }
        self._blobs.discard_arriving(update.blob.digest)

    def _drop(self, device_id: str) -> None:
        """This device sends it no more; what has arrived stays if another one does."""
        gone = self._by_device.pop(device_id)
        if all(upload.ref != gone.ref for upload in self._by_device.values()):
            self._blobs.discard_arriving(gone.ref.digest)
