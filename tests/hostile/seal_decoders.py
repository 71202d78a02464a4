"""What seals, key sets, identities and lists of members are read from."""

from __future__ import annotations

import json
from pathlib import Path
from queue import SimpleQueue

from edge_client.trust import DeviceTrust
from fedtide.errors import ConfigError, StateError
from fedtide.generations import Generations
from fedtide.identity import CA_NAME, CERTIFICATE_NAME, KEY_NAME, KEY_SET_NAME, load_identity
from fedtide.keys import public_bytes
from fedtide.members import Members
from fedtide.memory import MemoryBroker, MemoryTransport
from fedtide.messages import Receipt, encode
from fedtide.seal import open_sealed, seal
from fedtide.sealed_transport import SealedTransport
from fedtide.sequence import Sequence
from fedtide.topics import Topics
from fedtide.transport import LinkEvent, Received, Unsealed
from tests.hostile.decoder import Decoder
from tests.identities import Authority

TOPICS = Topics("tides")


def sealed(folder: Path) -> Decoder:
    """A device's link: nothing is heard but what the coordinator has sealed."""
    authority = Authority("tides")
    identity = authority.identity(folder / "alpha", "alpha")
    down, key = TOPICS.down("alpha"), authority.coordinator
    messages = [encode(Receipt("u" * 24, "accepted"), str(n)) for n in range(3)]
    seeds = [seal(down, message, key, n + 1) for n, message in enumerate(messages)]
    broker, heard = MemoryBroker(), SimpleQueue[LinkEvent]()
    link = SealedTransport(
        lambda deliver, will: MemoryTransport(broker, deliver, will),
        heard.put,
        None,
        TOPICS,
        identity.key,
        Sequence(identity.folder).take,
        DeviceTrust(TOPICS, identity),
    )
    link.start()
    link.subscribe([down, TOPICS.beacon])
    heard.get()

    def read(raw: bytes) -> str:
        said = []
        for place in (down, TOPICS.beacon, TOPICS.keys):
            broker.route(place, raw, retain=False)
            while not heard.empty():
                event = heard.get()
                if isinstance(event, Received) and event.payload:
                    assert event.topic == down
                    assert event.payload in messages
                    assert raw in seeds
                said.append(event.reason if isinstance(event, Unsealed) else "heard")
        return " ".join(said)

    return Decoder((*seeds, authority.key_set()), read)


def members(folder: Path) -> Decoder:
    """The list of members, read anew each time."""
    path = folder / "members.json"
    seeds = [{"devices": {"alpha": {"key": "ab" * 32}}}, {"devices": {}}]

    def read(raw: bytes) -> str:
        path.write_bytes(raw)
        try:
            key = Members(path).key("alpha")
        except ConfigError as exc:
            return str(exc.args[0])
        assert key is None or len(key) == 32
        return "none" if key is None else "a key"

    return Decoder(tuple(json.dumps(seed).encode() for seed in seeds), read, "json")


def identity(folder: Path) -> Decoder:
    """Each file of an identity, one after the other; the others are in order."""
    made = Authority("tides").identity(folder / "alpha", "alpha")
    names = (KEY_NAME, CERTIFICATE_NAME, CA_NAME, KEY_SET_NAME)
    right = {name: (made.folder / name).read_bytes() for name in names}
    public = public_bytes(made.key)

    def read(raw: bytes) -> str:
        said = []
        for name in names:
            (made.folder / name).write_bytes(raw)
            try:
                found = load_identity(made.folder)
                DeviceTrust(TOPICS, found)
                assert public_bytes(found.key) == public
                said.append("read")
            except (ConfigError, StateError) as exc:
                said.append(str(exc.args[0]))
            (made.folder / name).write_bytes(right[name])
        return " ".join(said)

    return Decoder(tuple(right.values()), read)


def numbers(folder: Path) -> Decoder:
    """Marks and reserved numbers, with a right checksum."""
    authority = Authority("tides")
    made, down = authority.identity(folder / "alpha", "alpha"), TOPICS.down("alpha")
    receipt = open_sealed(
        seal(down, encode(Receipt("u", "accepted"), "1"), authority.coordinator, 9)
    )
    assert receipt is not None

    def read(raw: bytes) -> str:
        for name in ("marks", "sequence"):
            saved = Generations(made.folder / name)
            for _ in range(2):
                saved.save(raw)
        heard = DeviceTrust(TOPICS, made).objection(down, receipt)
        assert heard is None or "replayed" in heard
        assert 0 < Sequence(made.folder, lambda: 5).take() < 2**63
        return "read"

    return Decoder((b'{"0123456789abcdef": 7}', b"1795000000000"), read, "json")
