"""The bytes of a seal, pinned, and made here from the protocol's text alone (§12).

`seal.json` is written by `pytest tests/golden --update-golden`. The key is that of the first test
in RFC 8032, section 7.1; Ed25519 signs without chance, so every implementation makes these bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtide.key_set import open_key_set, seal_key_set
from fedtide.messages import KeySet
from fedtide.seal import Sealed, is_sealed_by, open_sealed, seal
from fedtide.topics import Topics

GOLDEN = Path(__file__).with_name("seal.json")
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
TOPIC = "fedtide/1/digits/down/kitchen-pi"
SEQUENCE = 1_763_769_600_123
MESSAGE = bytes.fromhex("83a176")


def test_a_seal_has_these_bytes(update_golden: bool) -> None:
    key_set = seal_key_set(Topics("digits"), KeySet(2, (PUBLIC,)), KEY)
    made = {
        "secret": SECRET.hex(),
        "public": PUBLIC.hex(),
        "topic": TOPIC,
        "sequence": SEQUENCE,
        "message": MESSAGE.hex(),
        "sealed": seal(TOPIC, MESSAGE, KEY, SEQUENCE).hex(),
        "key_set": key_set.hex(),
    }
    if update_golden:
        GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden == made
    assert open_key_set(Topics("digits"), bytes.fromhex(golden["key_set"]), PUBLIC) == KeySet(
        2, (PUBLIC,)
    )


def test_and_they_follow_from_the_protocol() -> None:
    signed = b"fedtide seal 1\x00"
    signed += len(TOPIC).to_bytes(2, "little") + SEQUENCE.to_bytes(8, "little")
    signed += TOPIC.encode() + MESSAGE
    signature = KEY.sign(signed)
    key_id = hashlib.sha256(PUBLIC).digest()[:8]
    raw = b"\xc1fs\x01" + key_id + SEQUENCE.to_bytes(8, "little") + signature + MESSAGE
    assert json.loads(GOLDEN.read_text())["sealed"] == raw.hex()
    assert open_sealed(raw) == Sealed(key_id, SEQUENCE, signature, MESSAGE)
    assert is_sealed_by(PUBLIC, TOPIC, Sealed(key_id, SEQUENCE, signature, MESSAGE))
