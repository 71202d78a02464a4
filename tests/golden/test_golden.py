"""The bytes on the wire, pinned: one example of each message, a chunk, encoded vectors.

`wire.json` is written by `pytest tests/golden --update-golden`, and then read by an independent
reader of MessagePack below, so that nothing in it needs Python or msgspec. `earlier.json` holds the
bytes that earlier versions sent, and is never written again.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from fedtide.measures import Measure, Metrics
from fedtide.messages import (
    AnyMessage,
    Beacon,
    BlobRef,
    Chunk,
    Decline,
    Encoding,
    Enrol,
    Enrolled,
    Envelope,
    Hello,
    KeySet,
    Offer,
    Presence,
    Problem,
    Receipt,
    Refusal,
    Renamed,
    Status,
    Task,
    Update,
    Want,
    Welcome,
    decode,
    encode,
)
from fedtide.plan import Plan
from fedtide.vectors import decode_vector, encode_vector

WIRE = Path(__file__).with_name("wire.json")
EARLIER_WIRE = Path(__file__).with_name("earlier.json")

MANIFEST = BlobRef("aa" * 32, 2_048)
MODEL = BlobRef("bb" * 32, 6_653_480)  # 1,663,370 float32: the MNIST CNN of the FedAvg paper
UPDATE = Update(
    update_id="0123456789abcdef01234567",
    run_id="5f0c2a9be4d17386",
    round_id=7,
    kind="train",
    model=MODEL.digest,
    examples=600,
    blob=BlobRef("cc" * 32, 3_326_740),
    encoding="f16",
    steps=300,
    training_ms=41_250,
    losses=(0.5, 0.25),
    held_out=Metrics(60, {"loss": Measure(30.5, 60.0), "accuracy": Measure(51.0, 60.0)}),
)
TASK = Task(
    run_id="5f0c2a9be4d17386",
    round_id=7,
    kind="train",
    bundle=MANIFEST,
    model=MODEL,
    model_version=3,
    chunk_blocks=7,
    plan=Plan(epochs=5, batch_size=10, learning_rate=0.125, momentum=0.5, clip_norm=1.0, seed=42),
    encoding="f16",
    deadline_ms=60_000,
)
MESSAGES: dict[str, AnyMessage] = {
    "hello": Hello(
        "0.1.0", ("portable",), 600, ("f32",), (MANIFEST.digest,), ("u1",), "9c0f7e", "on battery"
    ),
    "offer": Offer(UPDATE),
    "decline": Decline("5f0c2a9be4d17386", 7, "there is no data file"),
    "want": Want(MODEL.digest, ((0, 7), (400, 7))),
    # CRC-32 of b"123456789" is 0xCBF43926: the check value of the algorithm's catalogue entry.
    "chunk": Chunk("dd" * 32, 9, 0, 0xCBF43926, b"123456789"),
    "welcome": Welcome(MANIFEST, MODEL, 3, 7, 30_000, 20_000, "quarantined for 59 min"),
    "task": msgspec.structs.replace(
        TASK, plan=msgspec.structs.replace(TASK.plan, training_ms_max=20_000)
    ),
    "receipt": Receipt("0123456789abcdef01234567", "discarded", "late: round 7 has closed"),
    "problem": Problem("17", "malformed: Input data was truncated"),
    "presence": Presence(True, "training", 7),
    "beacon": Beacon(True, "4e2-19a4f3c2b10"),
    "status": Status(
        phase="collecting",
        round_id=7,
        rounds_count=50,
        model_version=3,
        cohort=("a", "b"),
        accepted=("a",),
        deadline_ms=1_500,
        reason="1 of 2",
        loss=0.5,
        accuracy=0.9375,
        rounds_done=6,
        wanted=2,
        quorum=1,
        declined=("b",),
        quarantined=("c",),
        online_count=5,
        cohort_count=2,
        accepted_count=1,
        declined_count=1,
        quarantined_count=1,
        heard_ms=(250, None),
    ),
}
# What fields that came later are taken to be where they are missing.
EARLIER = MESSAGES | {
    "hello": Hello("0.1.0", ("portable",), 600, ("f32", "f16"), (MANIFEST.digest,), ("u1",)),
    "welcome": Welcome(MANIFEST, MODEL, 3, 7, 30_000, spread_ms=0, notice=""),
    "task": TASK,
    "status": Status("collecting", 7, 50, 3, ("a", "b"), ("a",), 1_500, "1 of 2", 0.5, 0.9375),
}
# Those that earlier versions did not have.
MESSAGES |= {
    "keyset": KeySet(2, (bytes(range(32)),)),
    "enrol": Enrol(b"\x30\x03\x02\x01\x00"),
    "enrolled": Enrolled("9c0f7e", "pi-1", b"\x30\x03\x02\x01\x01", b"\xc1fs\x01"),
    "refusal": Refusal("9c0f7e", "this join code has been used already"),
    "renamed": Renamed("kitchen-pi"),
}
# +1, -2, 0.5 and 65504 (largest binary16): exact in both encodings.
# binary32: 3f800000 c0000000 3f000000 477fe000; binary16: 3c00 c000 3800 7bff; little-endian.
VALUES = (1.0, -2.0, 0.5, 65504.0)
VECTORS = {"f32": "0000803f000000c00000003f00e07f47", "f16": "003c00c00038ff7b"}


def read(raw: bytes) -> Any:
    """An independent reader of MessagePack, from its specification alone."""
    value, rest = _value(raw)
    assert rest == b"", "bytes after the value"
    return value


def _value(raw: bytes) -> tuple[Any, bytes]:
    tag, rest = raw[0], raw[1:]
    if tag <= 0x7F or tag >= 0xE0:
        return tag - 0x100 * (tag >= 0xE0), rest
    if tag <= 0x8F:
        return _map(tag & 0x0F, rest)
    if tag <= 0x9F:
        return _array(tag & 0x0F, rest)
    if tag <= 0xBF:
        return rest[: tag & 0x1F].decode(), rest[tag & 0x1F :]
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], rest
    numbers = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
    numbers |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    if tag in numbers:
        size = struct.calcsize(numbers[tag])
        return struct.unpack(numbers[tag], rest[:size])[0], rest[size:]
    lengths = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}
    lengths |= {0xDE: 2, 0xDF: 4}
    size = lengths[tag]
    count, rest = int.from_bytes(rest[:size], "big"), rest[size:]
    if tag <= 0xC6:
        return rest[:count], rest[count:]
    if tag <= 0xDB:
        return rest[:count].decode(), rest[count:]
    return _array(count, rest) if tag <= 0xDD else _map(count, rest)


def _array(count: int, rest: bytes) -> tuple[list[Any], bytes]:
    values = []
    for _ in range(count):
        value, rest = _value(rest)
        values.append(value)
    return values, rest


def _map(count: int, rest: bytes) -> tuple[dict[str, Any], bytes]:
    pairs, rest = _array(2 * count, rest)
    return dict(zip(pairs[::2], pairs[1::2], strict=True)), rest


def readable(value: Any) -> Any:
    """The same as JSON shows it: bytes as hexadecimal digits."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: readable(part) for key, part in value.items()}
    return [readable(part) for part in value] if isinstance(value, list) else value


@pytest.fixture
def wire(update_golden: bool) -> dict[str, Any]:
    if update_golden:
        golden = {
            name: {"says": readable(read(raw)), "bytes": raw.hex()}
            for name, message in MESSAGES.items()
            for raw in (encode(message, "m1"),)
        }
        WIRE.write_text(json.dumps(golden, indent=1) + "\n")
    loaded: dict[str, Any] = json.loads(WIRE.read_text())
    return loaded


def test_there_is_an_example_of_every_message(wire: dict[str, Any]) -> None:
    assert {kind.__name__.lower() for kind in get_args(AnyMessage)} == set(MESSAGES) == set(wire)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_bytes_are_those_of_the_golden_file(wire: dict[str, Any], name: str) -> None:
    assert encode(MESSAGES[name], "m1").hex() == wire[name]["bytes"]


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_an_independent_reader_understands_them(wire: dict[str, Any], name: str) -> None:
    raw = bytes.fromhex(wire[name]["bytes"])
    assert readable(read(raw)) == wire[name]["says"]
    assert wire[name]["says"]["v"] == 1
    assert wire[name]["says"]["body"]["type"] == name


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_golden_bytes_are_read_as_the_message(wire: dict[str, Any], name: str) -> None:
    assert decode(bytes.fromhex(wire[name]["bytes"])) == Envelope(1, "m1", MESSAGES[name])


@pytest.mark.parametrize("name", sorted(EARLIER))
def test_what_earlier_versions_sent_is_read(name: str) -> None:
    raw = bytes.fromhex(json.loads(EARLIER_WIRE.read_text())[name]["bytes"])
    assert decode(raw) == Envelope(1, "m1", EARLIER[name])


def test_a_plan_says_only_what_is_not_as_by_default() -> None:
    """Or no field could ever be added: an unknown one makes the task malformed."""
    said = readable(read(encode(TASK, "m1")))["body"]["plan"]
    assert {"steps_max", "training_ms_max"}.isdisjoint(said)
    assert decode(encode(TASK, "m1")) == Envelope(1, "m1", TASK)


@pytest.mark.parametrize("encoding", ["f32", "f16"])
def test_vectors(encoding: Encoding) -> None:
    raw = bytes.fromhex(VECTORS[encoding])
    assert encode_vector(np.array(VALUES, dtype=np.float32), encoding) == raw
    assert tuple(decode_vector(raw, encoding, len(VALUES))) == VALUES
    assert struct.unpack("<4f" if encoding == "f32" else "<4e", raw) == VALUES


def test_the_reader_notices_a_changed_byte(wire: dict[str, Any]) -> None:
    raw = bytearray.fromhex(wire["chunk"]["bytes"])
    raw[-1] ^= 1
    assert readable(read(bytes(raw))) != wire["chunk"]["says"]
