"""Everything that is said on the wire: MessagePack maps, typed and validated (protocol §3).

A message travels in an envelope {"v": 1, "id": sender's own id, "body": {"type": ..., ...}}.
Unknown fields are ignored, so that a newer peer may say more; unknown types and wrong values are
malformed. Malformed messages are data: `decode` returns a `Malformed`, it never raises.
Durations only: a device may have no clock.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from fedtide import limits
from fedtide.manifest import Sha256
from fedtide.measures import Finite, Metrics, Natural
from fedtide.plan import Plan
from fedtide.topics import IDENTIFIER_PATTERN

PROTOCOL_VERSION: Literal[1] = 1

Identifier = Annotated[str, Meta(pattern=IDENTIFIER_PATTERN)]
DurationMs = Natural
Text = Annotated[str, Meta(max_length=1000)]
Encoding = Literal["f32", "f16"]
Kind = Literal["train", "evaluate"]
Range = tuple[Natural, Annotated[int, Meta(ge=1, lt=2**53)]]
"""First block and number of blocks."""

Names = Annotated[tuple[Identifier, ...], Meta(max_length=limits.NAMES_MAX)]
"""Devices; of a large fleet only the first, with a count beside them."""

PublicKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""Of Ed25519 (RFC 8032)."""

ChunkBlocks = Annotated[int, Meta(ge=1, le=limits.CHUNK_BLOCKS_MAX)]
"""Grid of the retained chunks: they start at multiples of this many blocks."""


class BlobRef(Struct, frozen=True):
    """A blob by content: its SHA-256 and size."""

    digest: Sha256
    size_bytes: Annotated[int, Meta(ge=1, le=limits.BLOB_BYTES_MAX)]


class Message(Struct, frozen=True, tag_field="type", tag=lambda name: name.lower()):
    """Base of all messages."""


class Hello(Message, frozen=True):
    """Device: I am here, I hold this, I owe that. On every (re)connect, and now and then."""

    version: Text
    runtimes: Annotated[tuple[Text, ...], Meta(max_length=8)]
    examples: Natural
    encodings: Annotated[tuple[Text, ...], Meta(max_length=16)]
    holds: Annotated[tuple[Sha256, ...], Meta(max_length=64)] = ()
    """Digests of the bundle and the global models on the device."""
    owes: Annotated[tuple[Identifier, ...], Meta(max_length=64)] = ()
    """Updates in the outbox, without a receipt."""
    installation: Text = ""
    """Random, made once for each state folder: tells two devices under one name apart."""
    unready: Text = ""
    """Why the device takes no tasks now, for a person to read; empty: it does."""


class Update(Struct, frozen=True):
    """What a device learned in one round. For an evaluation there is no blob."""

    update_id: Identifier
    run_id: Identifier
    round_id: Natural
    kind: Kind
    model: Sha256
    """The global model it started from."""
    examples: Natural
    """n_k, the weight in the average."""
    blob: BlobRef | None
    """delta = new - old of what travels, in `encoding`."""
    encoding: Encoding
    steps: Natural
    training_ms: DurationMs
    losses: Annotated[tuple[Finite, ...], Meta(max_length=10_000)] = ()
    """Mean training loss of each local epoch."""
    held_out: Metrics | None = None
    """The global model it started from, on this device's held-out data."""


class Offer(Message, frozen=True):
    """Device: I have this update. Said again until a receipt comes."""

    update: Update


class Decline(Message, frozen=True):
    """Device: I cannot do this task, and this is why."""

    run_id: Identifier
    round_id: Natural
    reason: Text


class Want(Message, frozen=True):
    """Either side: send these blocks of a blob (again)."""

    digest: Sha256
    missing: Annotated[tuple[Range, ...], Meta(max_length=1024)]


class Chunk(Message, frozen=True):
    """A run of blocks of a blob. `crc32` is over `content`; the whole is checked by its digest."""

    digest: Sha256
    size_bytes: Annotated[int, Meta(ge=1, le=limits.BLOB_BYTES_MAX)]
    first_block: Natural
    crc32: Annotated[int, Meta(ge=0, lt=2**32)]
    content: Annotated[bytes, Meta(min_length=1, max_length=limits.MESSAGE_BYTES_MAX)]


class Welcome(Message, frozen=True):
    """Coordinator, to a `Hello`: what to hold ready, and when to say hello again."""

    bundle: BlobRef
    model: BlobRef
    model_version: Natural
    chunk_blocks: ChunkBlocks
    hello_ms: Annotated[int, Meta(ge=1_000, lt=2**53)]
    """The device's own: devices that came at once do not come at once again."""
    spread_ms: DurationMs = 0
    """After a lost link or coordinator is back, wait a random share of this before the hello."""
    notice: Text = ""
    """Why the device is not invited now, for a person to read."""


class Task(Message, frozen=True):
    """Coordinator: take part in this round. Idempotent by `run_id` and `round_id`."""

    run_id: Identifier
    """One life of a coordinator's store; round ids are counted within it."""
    round_id: Natural
    kind: Kind
    bundle: BlobRef
    model: BlobRef
    model_version: Natural
    chunk_blocks: ChunkBlocks
    plan: Plan
    encoding: Encoding
    deadline_ms: DurationMs
    """Time left for the update to arrive, counted from the moment of sending."""


class Receipt(Message, frozen=True):
    """Coordinator: the final word on an update; the device may now forget it."""

    update_id: Identifier
    verdict: Literal["accepted", "discarded", "rejected"]
    reason: Text = ""


class Problem(Message, frozen=True):
    """Coordinator: a message of yours could not be used, and this is why."""

    regarding: Text
    reason: Text


class Presence(Message, frozen=True):
    """Retained: what a device is doing now, or (its will) that it is gone."""

    online: bool
    phase: Literal["idle", "fetching", "training", "uploading", "offline"]
    round_id: Natural = 0
    reason: Text = ""
    """Why the device waits, for a person to read."""


class Beacon(Message, frozen=True):
    """Retained: the coordinator is here, or (its will) gone. A new `session` asks for a `Hello`."""

    online: bool
    session: Text


class Status(Message, frozen=True):
    """Retained: what the coordinator is doing, for whoever watches; devices need not."""

    phase: Text = ""
    round_id: Natural = 0
    rounds_count: Natural = 0
    model_version: Natural = 0
    cohort: Names = ()
    accepted: Names = ()
    deadline_ms: DurationMs = 0
    reason: Text = ""
    """What is being waited for, for a person to read."""
    loss: float | None = None
    accuracy: float | None = None
    """Newest global model on the coordinator's test set, or on the devices' held-out data."""
    kind: Text = "train"
    mode: Text = "synchronous"
    rounds_done: Natural = 0
    wanted: Natural = 0
    quorum: Natural = 0
    """Updates that close the round at once, and that make it count at its deadline."""
    declined: Names = ()
    rejected: Names = ()
    quarantined: Names = ()
    online_count: Natural = 0
    cohort_count: Natural = 0
    accepted_count: Natural = 0
    declined_count: Natural = 0
    rejected_count: Natural = 0
    quarantined_count: Natural = 0
    """How many there are, where the lists name only the first."""
    heard_ms: Annotated[tuple[Natural | None, ...], Meta(max_length=limits.NAMES_MAX)] = ()
    """How long ago each of `cohort` was heard, in its order; None: not for too long."""


class KeySet(Message, frozen=True):
    """Retained: the keys that what the coordinator says may be sealed with (`fedtide.key_set`)."""

    version: Annotated[int, Meta(ge=1, lt=2**53)]
    """A receiver takes a higher one only."""
    coordinator: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=limits.KEYS_MAX)]


class Enrol(Message, frozen=True):
    """Device to registrar: certify my key. Of a one-time join if it is said under a claim's name,
    and sealed by the claim's key; else a renewal, sealed by the key that is to be certified."""

    request: Annotated[bytes, Meta(min_length=1, max_length=limits.CERTIFICATE_BYTES_MAX)]
    """PKCS#10 in DER, signed by that key; only the key in it counts."""


class Enrolled(Message, frozen=True):
    """Registrar, sealed by the authority: this is your certificate, and your name."""

    regarding: Text
    name: Identifier
    certificate: Annotated[bytes, Meta(min_length=1, max_length=limits.CERTIFICATE_BYTES_MAX)]
    """X.509 in DER."""
    key_set: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    """As on the federation's topic `keys`."""


class Refusal(Message, frozen=True):
    """Registrar, sealed by the authority: no certificate, and why."""

    regarding: Text
    reason: Text
    final: bool = True
    """Asking again will not help."""


class Renamed(Message, frozen=True):
    """Registrar, sealed by the authority, retained: your name is to be this one; enrol again."""

    name: Identifier


FromDevice = Hello | Offer | Decline | Want | Chunk
ToDevice = Welcome | Task | Want | Receipt | Problem | Beacon
FromRegistrar = Enrolled | Refusal | Renamed
AnyMessage = FromDevice | ToDevice | Presence | Status | KeySet | Enrol | FromRegistrar


class Envelope(Struct, frozen=True):
    """What every payload is."""

    v: Literal[1]
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    body: AnyMessage


class Malformed(Struct, frozen=True):
    """A payload that is not a message of this protocol, and why."""

    reason: str
    regarding: str = ""
    """Its id, where one could be read."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(message: AnyMessage, message_id: str) -> bytes:
    """Payload of one message; `message_id` is the sender's own."""
    return _encoder.encode(Envelope(PROTOCOL_VERSION, message_id, message))


def decode(payload: bytes) -> Envelope | Malformed:
    """A message, or why it is none. Size is checked before anything is decoded."""
    if len(payload) > limits.MESSAGE_BYTES_MAX:
        return Malformed(f"{len(payload)} bytes, at most {limits.MESSAGE_BYTES_MAX} are read")
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return Malformed(str(exc)[:500], regarding=_id_of(payload))


def _id_of(payload: bytes) -> str:
    """Best effort: the id at the start of an envelope whose body is wrong."""
    found = re.match(rb"[\x80-\x8f]\xa1v[\x00-\x7f]\xa2id([\xa1-\xbf])", payload)
    if not found:
        return ""
    start, length = found.end(), found.group(1)[0] & 0x1F
    return payload[start : start + length].decode("utf-8", "replace")
