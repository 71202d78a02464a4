"""Blobs arrive whole, whatever the order, the duplicates, the damage and the restarts."""

from __future__ import annotations

import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from fedtide.blobs import BlobStore, PartialBlob, blocks_count, clip, split
from fedtide.bundle import sha256_hex
from fedtide.limits import BLOCK_BYTES
from fedtide.messages import BlobRef, Chunk, Range

sizes = st.one_of(
    st.integers(1, 8 * BLOCK_BYTES),
    st.sampled_from([1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 7 * BLOCK_BYTES]),
)
ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=8)


def content_of(size: int) -> bytes:
    """Bytes that differ from block to block."""
    return (b"".join(sha.to_bytes(4, "little") for sha in range(size // 4 + 1)))[:size]


def chunk_of(content: bytes, piece: Range) -> Chunk:
    part = content[piece[0] * BLOCK_BYTES : sum(piece) * BLOCK_BYTES]
    return Chunk(sha256_hex(content), len(content), piece[0], zlib.crc32(part), part)


def blocks_of(pieces: list[Range]) -> list[int]:
    return [block for first, count in pieces for block in range(first, first + count)]


@given(ranges, st.integers(1, 7))
def test_split_covers_the_same_blocks_on_the_grid(pieces: list[Range], grid: int) -> None:
    cut = split(pieces, grid)
    assert blocks_of(cut) == blocks_of(pieces)
    assert all(first // grid == (first + count - 1) // grid for first, count in cut)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**53 - 1), st.integers(1, 2**53 - 1))
        | st.tuples(st.integers(0, 30), st.integers(1, 30)),
        max_size=12,
    ),
    st.integers(0, 40),
)
def test_clip_gives_each_wanted_block_of_the_blob_once(pieces: list[Range], blocks: int) -> None:
    clipped = clip(pieces, blocks)
    wanted = [b for b in range(blocks) if any(first <= b < first + n for first, n in pieces)]
    assert blocks_of(clipped) == wanted


@st.composite
def journeys(draw: st.DrawFn) -> tuple[int, list[tuple[str, Range]]]:
    """A blob's size, and what happens on its way in."""
    size = draw(sizes)
    count = blocks_count(size)
    piece = st.integers(0, count - 1).flatmap(
        lambda first: st.tuples(st.just(first), st.integers(1, min(7, count - first)))
    )
    event = st.tuples(st.sampled_from(["chunk", "flip", "rot", "restart", "lie"]), piece)
    return size, draw(st.lists(event, max_size=20))


@settings(max_examples=60, deadline=None)
@given(journeys())
def test_a_blob_arrives_intact(journey: tuple[int, list[tuple[str, Range]]]) -> None:
    size, events = journey
    content = content_of(size)
    ref = BlobRef(sha256_hex(content), size)
    with TemporaryDirectory() as folder:
        store = BlobStore(Path(folder))
        partial = store.open_partial(ref)
        here: set[int] = set()
        wrong: set[int] = set()
        for kind, piece in events:
            chunk = chunk_of(content, piece)
            covered = set(range(piece[0], sum(piece)))
            if kind == "chunk":
                before = covered <= here
                assert partial.accept(chunk) is None
                wrong -= set() if before else covered
                here |= covered
            elif kind == "flip":
                broken = bytearray(chunk.content)
                broken[len(broken) // 2] ^= 1
                damaged = Chunk(ref.digest, size, piece[0], chunk.crc32, bytes(broken))
                assert partial.accept(damaged) == "chunk fails its CRC"
            elif kind == "lie":
                other = bytes(len(chunk.content))
                lie = Chunk(ref.digest, size, piece[0], zlib.crc32(other), other)
                before = covered <= here
                assert partial.accept(lie) is None
                wrong |= set() if before else covered
                here |= covered
            elif kind == "rot":
                path = Path(folder) / "partial" / ref.digest
                with path.open("rb+") as file:
                    file.seek(piece[0] * BLOCK_BYTES)
                    old = file.read(1)
                    file.seek(piece[0] * BLOCK_BYTES)
                    file.write(bytes([(old[0] + 1) % 256]))
                partial = store.open_partial(ref)
                here.discard(piece[0])
                wrong.discard(piece[0])
            else:
                partial = store.open_partial(ref)
            absent = blocks_of(partial.missing())
            assert absent == [b for b in range(blocks_count(size)) if b not in here]
            assert partial.complete == (not absent)
        _fetch_the_rest(partial, content)
        # Lies with a right CRC are only found by the digest; then all is fetched again.
        if wrong:
            lies = not partial.finish()
            if lies:
                assert blocks_of(partial.missing()) == list(range(blocks_count(size)))
                _fetch_the_rest(partial, content)
                assert partial.finish()
        else:
            assert partial.content() == content
            partial.keep(durable=True)
        assert store.read(ref.digest) == content
        assert not list((Path(folder) / "partial").iterdir())


def _fetch_the_rest(partial: PartialBlob, content: bytes) -> None:
    for piece in split(partial.missing()):
        assert partial.accept(chunk_of(content, piece)) is None
    assert partial.complete
