"""A new device asks the registrar for its certificate, with the claim of its join code.

The private key is made here and never leaves. It is on disk before anything is asked for, so that
whatever cuts this short, the next attempt asks with the same key and gets the same answer; then
the claim, which can be used once, is not lost with it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from edge_client.membership.grant import Grant, grant_of
from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError, ConfigError
from fedtide.failpoints import reach
from fedtide.files import (
    disk_errors_of,
    make_folder,
    remove_tree,
    sync_folder,
    write_atomically,
)
from fedtide.identity import certificate_request, write_identity
from fedtide.inquiry import Inquiry
from fedtide.join_code import JoinCode
from fedtide.keys import load_key, new_key, public_bytes, save_key
from fedtide.messages import Enrol, Enrolled, Envelope, Refusal, decode, encode
from fedtide.seal import is_sealed_by, open_sealed, seal
from fedtide.sequence import epoch_ms
from fedtide.topics import Topics
from fedtide.transport import Broken, Connected, Disconnected, LinkEvent, Received, Refused

RETRY_S = 2.0
"""Until a request is said again: its answer, or it, may be lost."""
TOLD_S = 15.0
"""How often somebody who waits is told what for."""
NEW_KEY_NAME = "device.pem"
"""File of the device's key, until there is an identity."""
_FORMER = "former"
"""Folder of an identity that is over, while the next is written."""
GIVE_UP_PAUSE_MS = 200_000
"""A link that pauses for longer than this will not come up by itself."""

Say = Callable[[str], None]


class _Claim(NamedTuple):
    """Files of the claim, for TLS."""

    broker: BrokerConfig
    key: Ed25519PrivateKey


def enrol(code: JoinCode, folder: Path, identity: Path, wait_s: float, say: Say) -> Grant:
    """Join with `code`: afterwards `identity` is whole, and `folder`, with what is under way, gone.
    An identity that is there is replaced, once the other is granted.

    Raises:
        BrokerError: no broker, or nobody answers within `wait_s`.
        ConfigError: the server refuses the code, with its reason.
        StateError: the disk is full or failing.
    """
    make_folder(folder)
    key = _key_in(folder)
    reach("join: key made")
    claim = _claim_in(folder, code)
    ca = x509.load_der_x509_certificate(code.ca)
    grant = _Asking(code, claim, key, ca, say).ask(wait_s)
    reach("join: answer heard")
    _put_aside(identity, folder)
    write_identity(identity, key, grant.certificate, ca.public_bytes(Encoding.PEM), grant.key_set)
    reach("join: identity written")
    remove_tree(folder)
    return grant


def _put_aside(identity: Path, folder: Path) -> None:
    """At once: half of an identity would be nobody's."""
    former = folder / _FORMER
    remove_tree(former)
    if identity.exists():
        with disk_errors_of(identity.parent):
            identity.rename(former)
            sync_folder(identity.parent)


def _key_in(folder: Path) -> Ed25519PrivateKey:
    path = folder / NEW_KEY_NAME
    if not path.exists():
        save_key(path, new_key())
    return load_key(path)


def _claim_in(folder: Path, code: JoinCode) -> _Claim:
    key = Ed25519PrivateKey.from_private_bytes(code.key)
    ca, certificate, key_file = (folder / name for name in ("ca.pem", "claim.crt", "claim.pem"))
    write_atomically(ca, _pem(code.ca))
    write_atomically(certificate, _pem(code.certificate))
    save_key(key_file, key)
    broker = BrokerConfig(
        host=code.host,
        port=code.port,
        ca_file=ca,
        certificate_file=certificate,
        key_file=key_file,
        reconnect_ms_max=5_000,
        give_up_ms=0,
    )
    return _Claim(broker, key)


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


class _Asking:
    """One request, said until it is answered."""

    def __init__(
        self,
        code: JoinCode,
        claim: _Claim,
        key: Ed25519PrivateKey,
        ca: x509.Certificate,
        say: Say,
    ) -> None:
        authority = ca.public_key()
        if not isinstance(authority, Ed25519PublicKey):
            raise ConfigError("the join code is of no authority of fedtide: not Ed25519")
        self._authority = public_bytes(authority)
        self._code, self._claim, self._key, self._ca = code, claim, key, ca
        self._say = say
        self._topics = Topics(code.federation)
        self._answers = self._topics.enrolled(code.claim)
        self._id = secrets.token_hex(8)
        self._waiting_for = f"the broker at {code.host}:{code.port}"

    def ask(self, wait_s: float) -> Grant:
        """See `enrol`."""
        began_s = told_s = time.monotonic()
        until_s = began_s + wait_s
        with Inquiry(self._claim.broker, "join") as inquiry:
            connected, asked_s = False, 0.0
            while (now_s := time.monotonic()) < until_s:
                if connected and now_s >= asked_s + RETRY_S:
                    self._request(inquiry)
                    asked_s = now_s
                if now_s >= told_s + TOLD_S:
                    told_s = now_s
                    waited = f"{now_s - began_s:.0f} s of {wait_s:.0f} s"
                    self._say(f"waiting for {self._waiting_for} ({waited})")
                event = inquiry.next_event(min(1.0, until_s - now_s))
                if isinstance(event, Connected):
                    inquiry.link.subscribe([self._answers])
                    connected, asked_s = True, 0.0
                    self._waiting_for = "the registrar's answer"
                elif isinstance(event, Disconnected | Refused | Broken):
                    connected = False
                    self._lost(event)
                elif event is not None and (grant := self._heard(event)) is not None:
                    return grant
        raise BrokerError(
            f"{wait_s:.0f} s have passed, waiting for {self._waiting_for}",
            hint="is the server up (fedtide-broker, fedtide-registrar), and reachable from here? "
            "Then repeat this command: nothing is lost, the join code is good until "
            f"{self._code.expires_at:%Y-%m-%d %H:%M} UTC",
        )

    def _request(self, inquiry: Inquiry) -> None:
        topic = self._topics.enrol(self._code.claim)
        message = encode(Enrol(certificate_request(self._code.claim, self._key)), self._id)
        inquiry.link.publish(topic, seal(topic, message, self._claim.key, epoch_ms()))
        reach("join: request said")

    def _lost(self, event: Disconnected | Refused | Broken) -> None:
        self._waiting_for = f"the broker at {self._code.host}:{self._code.port}: {event.reason}"
        gone = isinstance(event, Disconnected) and event.retry_ms >= GIVE_UP_PAUSE_MS
        if gone or not isinstance(event, Disconnected):
            raise BrokerError(
                event.reason,
                hint="the join code has expired, was replaced, or its device was revoked: make a "
                "new one on the server: fedtide device add NAME",
            )

    def _heard(self, event: LinkEvent) -> Grant | None:
        """The certificate; what is forged, or of an earlier request, is no answer."""
        if not isinstance(event, Received) or event.topic != self._answers:
            return None
        sealed = open_sealed(event.payload)
        if sealed is None or not is_sealed_by(self._authority, event.topic, sealed):
            self._say("an answer that the federation's authority has not sealed is ignored")
            return None
        envelope = decode(sealed.message)
        if not isinstance(envelope, Envelope):
            return None
        match envelope.body:
            case Refusal(regarding, reason, final) if regarding == self._id:
                if final:
                    raise ConfigError(f"the server refuses: {reason}")
                self._waiting_for = f"the registrar, who says: {reason}"
            case Enrolled(regarding) as answer if regarding == self._id:
                grant = grant_of(answer, self._topics, self._key, self._ca)
                if isinstance(grant, Grant):
                    return grant
                self._say(f"the registrar's answer is ignored: {grant}")
            case _:
                pass
        return None
