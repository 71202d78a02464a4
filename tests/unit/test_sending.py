"""What the sender of chunks has under way, and what it does when the broker loses some."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtide.blobs import BlobStore, clip, without
from fedtide.errors import BrokerError
from fedtide.limits import BLOCK_BYTES, CHUNK_BLOCKS_MAX
from fedtide.messages import BlobRef, Chunk, Range
from fedtide.sending import ChunkSender, chunk_blocks_for

BLOCKS = 80


class World:
    """A sender, what it said, and a broker that confirms when it is told to."""

    def __init__(self, folder: Path, *, grid: bool = False) -> None:
        store = BlobStore(folder)
        self.ref = store.put(bytes(range(256)) * (BLOCK_BYTES // 256) * BLOCKS)
        self.path = store.path(self.ref.digest)
        self.sender = ChunkSender(self._publish, grid=grid)
        self.said: list[Range] = []
        self.waiting: list[int] = []
        self.up = True

    def _publish(self, chunk: Chunk) -> int | None:
        if not self.up:
            return None
        self.said.append((chunk.first_block, -(-len(chunk.content) // BLOCK_BYTES)))
        self.waiting.append(len(self.said))
        return len(self.said)

    def want(self, *ranges: Range) -> None:
        self.sender.send(self.ref, self.path, ranges or [(0, BLOCKS)])

    def confirm(self, waited_ms: int = 1) -> str | None:
        return self.sender.delivered(self.waiting.pop(0), waited_ms)

    def confirm_all(self) -> None:
        while self.waiting:
            self.confirm()

    def blocks(self) -> list[int]:
        return [block for first, count in self.said for block in range(first, first + count)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_every_block_once_and_the_end_is_told(world: World) -> None:
    world.want()
    while len(world.waiting) > 1 or world.sender.busy() is False:
        assert world.confirm() is None
    ends = [world.confirm() for _ in list(world.waiting)]
    assert ends[-1] == world.ref.digest
    assert sorted(world.blocks()) == list(range(BLOCKS))
    assert not world.sender.busy()


def test_what_is_queued_or_under_way_is_not_sent_again(world: World) -> None:
    world.want()
    for _ in range(3):
        world.confirm()
        world.want((min(world.said[token - 1][0] for token in world.waiting), BLOCKS))
    world.confirm_all()
    assert sorted(world.blocks()) == list(range(BLOCKS))


def test_a_slow_line_has_two_single_blocks_under_way(world: World) -> None:
    world.want()
    for _ in range(BLOCKS):
        assert [count for _, count in world.said] == [1] * len(world.said)
        assert len(world.waiting) <= 2
        world.confirm(waited_ms=3_000 if len(world.said) > 2 else 1_500)


def test_a_fast_line_gets_full_chunks(world: World) -> None:
    world.want()
    world.confirm_all()
    assert max(count for _, count in world.said) == CHUNK_BLOCKS_MAX


def test_a_grid_is_kept_whatever_the_line(tmp_path: Path) -> None:
    world = World(tmp_path, grid=True)
    world.sender.chunk_blocks = 4
    world.want()
    world.confirm_all()
    assert world.said == [(first, 4) for first in range(0, BLOCKS, 4)]


def test_a_pause_keeps_what_is_under_way_and_nothing_else(world: World) -> None:
    world.want()
    under_way = len(world.said)
    world.sender.pause()
    world.confirm_all()
    assert len(world.said) == under_way
    world.want()
    world.confirm_all()
    assert set(world.blocks()) == set(range(BLOCKS))


def test_what_cannot_be_read_is_told_once(world: World) -> None:
    world.want()
    world.path.unlink()
    world.confirm_all()
    assert not world.sender.busy()
    assert world.sender.take_unreadable() == {world.ref.digest}
    assert world.sender.take_unreadable() == set()


def test_without_a_link_nothing_stays_queued(world: World) -> None:
    world.up = False
    world.want()
    assert not world.sender.busy()


def test_chunks_that_are_confirmed_and_lost_become_smaller(world: World) -> None:
    """Mosquitto with `message_size_limit`, MQTT 3.1.1: Success, and nothing arrives."""
    world.want()
    for _ in range(10):
        world.confirm_all()
        arrived = {first for first, count in world.said if count <= 1}
        missing = clip([(block, 1) for block in range(BLOCKS) if block not in arrived], BLOCKS)
        if not missing:
            break
        world.want(*missing)
    assert not missing
    assert len(world.blocks()) <= 4 * BLOCKS


def test_a_broker_that_hangs_up_on_large_chunks_gets_smaller_ones(world: World) -> None:
    arrived: set[int] = set()
    for _ in range(20):
        world.want(*clip([(b, 1) for b in range(BLOCKS) if b not in arrived], BLOCKS))
        while world.waiting:
            first, count = world.said[world.waiting[0] - 1]
            if count > 2:
                world.waiting.clear()
                world.sender.link_lost()
                break
            arrived.update(range(first, first + count))
            world.confirm()
        if len(arrived) == BLOCKS:
            return
    raise AssertionError(f"{len(arrived)} of {BLOCKS} blocks arrived")


@pytest.mark.parametrize("limit", [0, 10_000, BLOCK_BYTES + 511])
def test_a_packet_limit_below_one_block_is_refused_in_words(limit: int) -> None:
    with pytest.raises(BrokerError, match=f"packets of {limit} bytes at most"):
        chunk_blocks_for(limit)


@pytest.mark.parametrize(
    ("limit", "blocks"), [(BLOCK_BYTES + 512, 1), (20_000, 1), (65_536, 3), (10**9, 7)]
)
def test_a_packet_limit_is_respected(limit: int, blocks: int) -> None:
    assert chunk_blocks_for(limit) == blocks


ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=6)


@given(ranges, ranges)
def test_ranges_without_others_are_the_difference_of_sets(a: list[Range], b: list[Range]) -> None:
    def members(ranges: list[Range]) -> set[int]:
        return {n for first, count in ranges for n in range(first, first + count)}

    left = without(clip(a, 100), b)
    assert members(left) == members(a) - members(b)
    assert left == sorted(left)


def test_a_blob_that_is_gone_is_no_longer_sent(world: World) -> None:
    world.want()
    world.path.unlink()
    world.confirm_all()
    assert not world.sender.busy()


def test_a_foreign_confirmation_changes_nothing(world: World) -> None:
    assert world.sender.delivered(99) is None
    assert isinstance(world.ref, BlobRef)
