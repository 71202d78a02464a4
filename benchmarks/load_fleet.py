"""Many devices in one process, by the protocol alone: no training, no state, one link for all.

For measurements of the coordinator. Contents are a model's size and differ in their last bytes, so
that a thousand of them need the memory of one and each is a blob of its own.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import deque
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec
import numpy as np

from demo.brokers import Broker
from fedtide.blobs import blocks_count, split
from fedtide.bundle import sha256_hex
from fedtide.limits import BLOCK_BYTES
from fedtide.manifest import MANIFEST_NAME, File, encode_manifest
from fedtide.messages import (
    BlobRef,
    Chunk,
    Envelope,
    FromDevice,
    Hello,
    Offer,
    Range,
    Receipt,
    Task,
    Update,
    Want,
    decode,
    encode,
)  # fmt: skip
from fedtide.mqtt import MqttTransport
from fedtide.safetensors import encode_safetensors
from fedtide.topics import Topics
from fedtide.transport import Connected, Delivered, Disconnected, LinkEvent, Received
from simulator.faults.fake_learning import fake_bundle, initial_model

FLEET = "fleet"
"""The user that speaks for every device."""
UNCONFIRMED_MAX = 20
OFFER_AGAIN_S, OFFER_AGAIN_S_MAX = 3.0, 60.0


def write_bundle(folder: Path, elements: int) -> Path:
    """A bundle whose graphs are never run, with a model of so many values."""
    bundle = fake_bundle(elements)
    manifest = bundle.manifest
    contents = {path: bundle.fetch(path) for path in manifest.files}
    initial = encode_safetensors(initial_model(elements))
    contents[manifest.initial_model] = initial
    files = {**manifest.files, manifest.initial_model: File(len(initial), sha256_hex(initial))}
    contents[MANIFEST_NAME] = encode_manifest(msgspec.structs.replace(manifest, files=files))
    folder.mkdir(parents=True)
    for path, content in contents.items():
        (folder / path).write_bytes(content)
    return folder


def admit_fleet(broker: Broker) -> None:
    """Before the broker starts: let `FLEET` speak for every device."""
    with (broker.folder / "acl").open("a") as file:
        file.write(f"\nuser {FLEET}\ntopic readwrite fedtide/#\n")


class Contents:
    """Updates of one size that differ in their last eight bytes."""

    def __init__(self, elements: int) -> None:
        rng = np.random.default_rng(0)
        self._base = (rng.standard_normal(elements, np.float32) * 0.05).tobytes()
        self._hash = hashlib.sha256(self._base[:-8])

    def ref(self, number: int) -> BlobRef:
        """The name of update `number`."""
        digest = self._hash.copy()
        digest.update(self._tail(number))
        return BlobRef(digest.hexdigest(), len(self._base))

    def _tail(self, number: int) -> bytes:
        return np.array([number, 1.0], "<f4").tobytes()

    def chunk(self, number: int, ref: BlobRef, piece: Range) -> Chunk:
        """A chunk of it."""
        start, end = piece[0] * BLOCK_BYTES, sum(piece) * BLOCK_BYTES
        content = self._base[start:end]
        if end >= ref.size_bytes:
            content = content[:-8] + self._tail(number)
        return Chunk(ref.digest, ref.size_bytes, piece[0], zlib.crc32(content), content)


class _Upload:
    def __init__(self, number: int, update: Update) -> None:
        self.number = number
        self.update = update
        self.pieces: deque[Range] = deque()
        self.wait_s = OFFER_AGAIN_S
        self.offer_at_s = 0.0


class LoadFleet:
    """See the module. `run` takes one round from the first Hello to the last Receipt."""

    def __init__(self, broker: Broker, federation: str, count: int, elements: int) -> None:
        self._topics = Topics(federation)
        self._contents = Contents(elements)
        self._numbers = {f"device-{number}": number for number in range(count)}
        self._inbox: SimpleQueue[LinkEvent] = SimpleQueue()
        self._link = MqttTransport(broker.access(FLEET), "load-fleet", self._inbox.put)
        self._waiting: deque[tuple[str, Task]] = deque()
        self._active: dict[str, _Upload] = {}
        self._turns: deque[str] = deque()
        self._unconfirmed: set[int] = set()
        self.receipts: dict[str, Receipt] = {}
        self.chunks_sent = 0
        self.offers_sent = 0
        self.first_offer_s = 0.0

    def run(self, at_once: int, timeout_s: float) -> float:
        """Answer the round, with so many uploads at a time; seconds from first offer to last
        receipt.

        Raises:
            TimeoutError: it did not end in time.
        """
        deadline_s = time.monotonic() + timeout_s
        self._link.start()
        try:
            while len(self.receipts) < len(self._numbers):
                now_s = time.monotonic()
                if now_s > deadline_s:
                    raise TimeoutError(f"{len(self.receipts)} of {len(self._numbers)} receipts")
                self._begin(at_once, now_s)
                self._send()
                try:
                    self._handle(self._inbox.get(timeout=0.2))
                    while True:
                        self._handle(self._inbox.get_nowait())
                except Empty:
                    pass
            return time.monotonic() - self.first_offer_s
        finally:
            self._link.stop()

    def _handle(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._link.subscribe([self._topics.down("+")])
                for device in self._numbers:
                    self._say(device, Hello("bench", ("portable",), 600, ("f32",)))
            case Disconnected(reason):
                raise RuntimeError(reason)
            case Delivered(token, refused):
                assert refused is None, refused
                self._unconfirmed.discard(token)
            case Received(topic, payload):
                envelope = decode(payload)
                assert isinstance(envelope, Envelope), envelope
                self._heard(topic.rsplit("/", maxsplit=1)[1], envelope.body)
            case _:
                raise RuntimeError(str(event))

    def _heard(self, device: str, body: object) -> None:
        match body:
            case Task():
                known = device in self._active or device in self.receipts
                if not known and all(name != device for name, _ in self._waiting):
                    self._waiting.append((device, body))
            case Want(_, missing) if device in self._active:
                upload = self._active[device]
                upload.pieces = deque(split(missing))
                upload.offer_at_s, upload.wait_s = 0.0, OFFER_AGAIN_S
                if device not in self._turns:
                    self._turns.append(device)
            case Receipt() as receipt:
                self.receipts[device] = receipt
                self._active.pop(device, None)

    def _begin(self, at_once: int, now_s: float) -> None:
        """Offer updates, new ones and those that have been silent for long."""
        while self._waiting and len(self._active) < at_once:
            device, task = self._waiting.popleft()
            self.first_offer_s = self.first_offer_s or now_s
            number = self._numbers[device]
            update = Update(
                update_id=f"{task.run_id}.{task.round_id}.{number}",
                run_id=task.run_id,
                round_id=task.round_id,
                kind=task.kind,
                model=task.model.digest,
                examples=600,
                blob=self._contents.ref(number) if task.kind == "train" else None,
                encoding=task.encoding,
                steps=1,
                training_ms=1,
            )
            self._active[device] = _Upload(number, update)
            self._active[device].offer_at_s = now_s
        for device, upload in self._active.items():
            if upload.offer_at_s and upload.offer_at_s <= now_s:
                self._say(device, Offer(upload.update))
                self.offers_sent += 1
                upload.offer_at_s = now_s + upload.wait_s
                upload.wait_s = min(2 * upload.wait_s, OFFER_AGAIN_S_MAX)

    def _send(self) -> None:
        """Chunks of all active uploads in turn."""
        while self._turns and len(self._unconfirmed) < UNCONFIRMED_MAX:
            device = self._turns.popleft()
            upload = self._active.get(device)
            if upload is None or not upload.pieces or upload.update.blob is None:
                continue
            piece = upload.pieces.popleft()
            self._say(device, self._contents.chunk(upload.number, upload.update.blob, piece))
            self.chunks_sent += 1
            if upload.pieces:
                self._turns.append(device)
            else:
                upload.offer_at_s = time.monotonic() + upload.wait_s

    def _say(self, device: str, message: FromDevice) -> None:
        token = self._link.publish(self._topics.up(device), encode(message, "1"))
        if token is not None and isinstance(message, Chunk):
            self._unconfirmed.add(token)


def chunks_of(elements: int) -> int:
    """Chunks of one update."""
    return len(split([(0, blocks_count(4 * elements))]))
