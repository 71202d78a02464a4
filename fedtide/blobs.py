"""Blobs on disk, addressed by SHA-256, and blobs on their way in, which survive a restart.

A blob arrives in blocks of 16 KiB in any order, with duplicates. What has arrived is in
`partial/DIGEST`, with the CRC of each block behind it; it is not fsynced block by block, because
on reopening every block is checked against its CRC and a bad one is simply missing again. The
finished blob is checked by its digest and renamed to `blobs/DIGEST`.
"""

from __future__ import annotations

import errno
import io
import os
import zlib
from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np

from fedtide.bundle import sha256_hex
from fedtide.failpoints import reach
from fedtide.files import disk_errors_of, make_folder, open_regular, sync_folder, write_atomically
from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX
from fedtide.messages import BlobRef, Chunk, Range


def blocks_count(size_bytes: int) -> int:
    """Number of blocks of a blob."""
    return -(-size_bytes // BLOCK_BYTES)


def make_chunk(ref: BlobRef, path: Path, piece: Range) -> Chunk:
    """Chunk with these blocks of the finished blob at `path`.

    Raises:
        OSError: the blob is gone or cannot be read.
    """
    first_block, count = piece
    with path.open("rb") as file:
        file.seek(first_block * BLOCK_BYTES)
        content = file.read(count * BLOCK_BYTES)
    return Chunk(ref.digest, ref.size_bytes, first_block, zlib.crc32(content), content)


def split(ranges: Iterable[Range], blocks_max: int = CHUNK_BLOCKS_MAX) -> list[Range]:
    """Ranges cut at multiples of `blocks_max`, so that every sender names the same chunks."""
    pieces: list[Range] = []
    for first, count in ranges:
        at, end = first, first + count
        while at < end:
            stop = min(end, (at // blocks_max + 1) * blocks_max)
            pieces.append((at, stop - at))
            at = stop
    return pieces


def clip(ranges: Iterable[Range], blocks: int) -> list[Range]:
    """Ranges merged, in order, and cut to a blob of this many blocks.

    What somebody asks for is bounded here by what there is, before anything is made of it.
    """
    merged: list[Range] = []
    for first, count in sorted(ranges):
        end = min(first + count, blocks)
        if merged and first <= sum(merged[-1]):
            start, length = merged[-1]
            merged[-1] = (start, max(length, end - start))
        elif first < end:
            merged.append((first, end - first))
    return merged


def without(ranges: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """What of `ranges` is not in `taken`, in order."""
    left = list(ranges)
    for start, length in taken:
        end = start + length
        left = [
            (a, b - a)
            for first, count in left
            for a, b in ((first, min(first + count, start)), (max(first, end), first + count))
            if a < b
        ]
    return left


class BlobStore:
    """Finished blobs under `folder/blobs`, arriving ones under `folder/partial`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._blobs = folder / "blobs"
        self._partial = folder / "partial"
        self._read_only = read_only
        if not read_only:
            make_folder(self._blobs)
            make_folder(self._partial)

    def path(self, digest: str) -> Path:
        """Where the finished blob lies."""
        return self._blobs / digest

    def has(self, digest: str) -> bool:
        """Whether the whole blob is here."""
        return self.path(digest).exists()

    def digests(self) -> list[str]:
        """Digests of all finished blobs, sorted."""
        return sorted(path.name for path in self._blobs.iterdir() if not path.name.startswith("."))

    def put(self, content: bytes) -> BlobRef:
        """Store `content` durably; a no-op if it is there already.

        Raises:
            StateError: the disk is full or failing.
        """
        ref = BlobRef(sha256_hex(content), len(content))
        if not self.has(ref.digest):
            write_atomically(self.path(ref.digest), content)
        return ref

    def read(self, digest: str) -> bytes:
        """Content of a finished blob, checked by its digest.

        Raises:
            FileNotFoundError: not here, or damaged (then it is removed, to be fetched again).
        """
        with open_regular(self.path(digest)) as file:
            content = file.read()
        if sha256_hex(content) != digest:
            if not self._read_only:
                self.discard(digest)
            raise FileNotFoundError(f"blob {digest[:12]} is damaged on disk")
        return content

    def discard(self, digest: str) -> None:
        """Forget a blob, finished or arriving.

        Raises:
            StateError: the disk is failing.
        """
        with disk_errors_of(self._blobs):
            reach("disk: remove")
            self.path(digest).unlink(missing_ok=True)
            (self._partial / digest).unlink(missing_ok=True)

    def discard_arriving(self, digest: str | None = None, but: Container[str] = ()) -> None:
        """Forget what has arrived of a blob (None: of every one, `but` those) not finished."""
        here = (path.name for path in self._partial.iterdir())
        names = [name for name in here if name not in but] if digest is None else [digest]
        for name in names:
            (self._partial / name).unlink(missing_ok=True)

    def keep_only(self, digests: set[str]) -> None:
        """Forget every blob, finished or arriving, that is not in `digests`."""
        here = {path.name for path in self._partial.iterdir()}
        for digest in sorted((here | set(self.digests())) - digests):
            self.discard(digest)

    def keep_finished(self, digests: Container[str]) -> None:
        """Forget every finished blob that is not in `digests`; what is arriving stays."""
        for digest in self.digests():
            if digest not in digests:
                self.path(digest).unlink(missing_ok=True)

    def open_partial(self, ref: BlobRef) -> PartialBlob:
        """The arriving blob, with whatever of it survived the last restart."""
        return PartialBlob(ref, self._partial, self._blobs)


class PartialBlob:
    """A blob on its way in: its content, and after it 8 bytes of mark for each block."""

    def __init__(self, ref: BlobRef, partial: Path, blobs: Path) -> None:
        self.ref = ref
        self._path = partial / ref.digest
        self._blob_path = blobs / ref.digest
        # Per block: CRC32 + 1 of what is there, or 0 for missing.
        self._marks = np.zeros(blocks_count(ref.size_bytes), dtype="<u8")
        with disk_errors_of(partial):
            self._restore()

    def _restore(self) -> None:
        size = self.ref.size_bytes + self._marks.nbytes
        if not self._path.exists() or self._path.stat().st_size != size:
            self._path.write_bytes(b"")
            os.truncate(self._path, size)
            return
        with self._path.open("rb") as file:
            file.seek(self.ref.size_bytes)
            marks = np.frombuffer(file.read(), dtype="<u8")
            for block in np.flatnonzero(marks):
                start = int(block) * BLOCK_BYTES
                file.seek(start)
                try:
                    content = file.read(min(BLOCK_BYTES, self.ref.size_bytes - start))
                except OSError:
                    continue  # a block that the disk cannot read is missing, too
                if zlib.crc32(content) + 1 == marks[block]:
                    self._marks[block] = marks[block]

    def missing(self) -> list[Range]:
        """Ranges of blocks that have not arrived, in order."""
        absent = np.concatenate(([0], (self._marks == 0).astype(np.int8), [0]))
        edges = np.flatnonzero(np.diff(absent))
        return [(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]

    @property
    def complete(self) -> bool:
        """Whether every block is here."""
        return bool(self._marks.all())

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self._marks)

    def arrived_blocks(self) -> int:
        """How many blocks are here."""
        return int(np.count_nonzero(self._marks))

    def accept(self, chunk: Chunk) -> str | None:
        """Store a chunk; the reason if it does not belong here. Duplicates are fine.

        Raises:
            StateError: the disk is full or failing.
        """
        reason = self._misfit(chunk)
        if reason is not None:
            return reason
        first, content = chunk.first_block, chunk.content
        fresh = self._marks[first : first + blocks_count(len(content))]
        if fresh.all():
            return None
        marks = [
            zlib.crc32(content[at : at + BLOCK_BYTES]) + 1
            for at in range(0, len(content), BLOCK_BYTES)
        ]
        with (
            disk_errors_of(self._path.parent),
            self._path.open("rb+", buffering=0) as file,
        ):
            reach("disk: write")
            _write_at(file, first * BLOCK_BYTES, content)
            fresh[:] = marks
            _write_at(file, self.ref.size_bytes + 8 * first, fresh.tobytes())
        return None

    def _misfit(self, chunk: Chunk) -> str | None:
        if chunk.size_bytes != self.ref.size_bytes:
            return f"chunk says {chunk.size_bytes} bytes, the blob has {self.ref.size_bytes}"
        if zlib.crc32(chunk.content) != chunk.crc32:
            return "chunk fails its CRC"
        start = chunk.first_block * BLOCK_BYTES
        end = start + len(chunk.content)
        if end > self.ref.size_bytes:
            return f"chunk ends at {end}, beyond the blob's {self.ref.size_bytes} bytes"
        if end != self.ref.size_bytes and len(chunk.content) % BLOCK_BYTES:
            return "chunk is not a whole number of blocks"
        return None

    def content(self) -> bytes | None:
        """The complete content, or None: it fails the digest, and all of it is missing again.

        Raises:
            StateError: the disk is full or failing.
        """
        with disk_errors_of(self._path.parent), self._path.open("rb+") as file:
            content = file.read(self.ref.size_bytes)
            if sha256_hex(content) == self.ref.digest:
                return content
            self._marks[:] = 0
            file.seek(self.ref.size_bytes)
            file.write(self._marks.tobytes())
        return None

    def keep(self, *, durable: bool) -> None:
        """Move to the finished blobs, after `content` was given.

        `durable`: survive a power cut; a blob that can be fetched again need not.

        Raises:
            StateError: the disk is full or failing.
        """
        with disk_errors_of(self._path.parent):
            with self._path.open("rb+") as file:
                file.truncate(self.ref.size_bytes)
                if durable:
                    reach("disk: sync")
                    os.fsync(file.fileno())
            reach("disk: rename")
            self._path.replace(self._blob_path)
            if durable:
                sync_folder(self._blob_path.parent)

    def finish(self) -> bool:
        """Check and keep a blob that can be fetched again; False: damaged, all is missing."""
        if self.content() is None:
            return False
        self.keep(durable=False)
        return True


def _write_at(file: io.FileIO, offset: int, content: bytes) -> None:
    file.seek(offset)
    if file.write(content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
