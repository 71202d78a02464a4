"""What the registrar answers: certificates for who may have them, and a reason for who may not.

Nothing here waits or knows a link. Who speaks is known by the seal: of the claim's key for a join,
of the device's own key for a renewal; the broker is not asked. A request may come again, since its
answer may be lost: the same key gets the same certificate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedtide.keys import public_bytes
from fedtide.limits import ENROL_BYTES_MAX
from fedtide.messages import (
    Enrol,
    Enrolled,
    Envelope,
    FromRegistrar,
    Refusal,
    Renamed,
    decode,
    encode,
)
from fedtide.seal import Sealed, is_sealed_by, open_sealed, seal
from fedtide.topics import CLAIM_PREFIX, Topics
from registrar.authority import Authority
from registrar.records import Certificate, Claim, RefusedError
from registrar.registry import Registry

_log = logging.getLogger(__name__)


class Said(NamedTuple):
    """What is to be published."""

    topic: str
    payload: bytes


class Enrolment:
    """See the module."""

    def __init__(
        self,
        topics: Topics,
        registry: Registry,
        authority: Authority,
        key_set: Callable[[], bytes],
        members_changed: Callable[[], None],
        take_number: Callable[[], int],
    ) -> None:
        """`key_set`: the sealed one of today; `members_changed` lets the coordinator know, and has
        done so when it returns; `take_number` gives each answer's seal its number."""
        self._topics = topics
        self._registry = registry
        self._authority = authority
        self._key_set = key_set
        self._members_changed = members_changed
        self._take_number = take_number

    def answer(self, topic: str, payload: bytes, now_ms: int) -> Said | str:
        """What to say to this message; else why nothing is said: it proves to be from nobody whom
        an answer could concern.

        Raises:
            StateError: the registry's disk is failing.
        """
        name = self._topics.enrolling(topic)
        if name is None:
            return "it is on a topic of nobody's"
        if len(payload) > ENROL_BYTES_MAX:
            return f"{len(payload)} bytes, at most {ENROL_BYTES_MAX} are read"
        sealed = open_sealed(payload)
        if sealed is None:
            return "it is not sealed"
        envelope = decode(sealed.message)
        if not isinstance(envelope, Envelope) or not isinstance(envelope.body, Enrol):
            return "it is no request for a certificate"
        key = _key_of(envelope.body.request)
        if key is None:
            return "its request is not signed by the key in it, or that is not of Ed25519"
        try:
            if name.startswith(CLAIM_PREFIX):
                certificate = self._join(name, topic, sealed, key, now_ms)
            else:
                certificate = self._renew(name, topic, sealed, key, now_ms)
        except RefusedError as exc:
            reason = str(exc.args[0])
            _log.warning("%s is refused a certificate: %s", name, reason)
            return self._say(name, Refusal(envelope.id, reason))
        if isinstance(certificate, str):
            return certificate
        der = x509.load_pem_x509_certificate(certificate.pem).public_bytes(Encoding.DER)
        enrolled = Enrolled(envelope.id, certificate.name, der, self._key_set())
        return self._say(name, enrolled)

    def renaming(self, name: str, new_name: str | None) -> Said:
        """To be retained: this device shall get another name; None: it keeps the one it has."""
        if new_name is None:
            return Said(self._topics.enrolled(name), b"")
        return self._say(name, Renamed(new_name))

    def _join(
        self, claim_id: str, topic: str, sealed: Sealed, key: Ed25519PublicKey, now_ms: int
    ) -> Certificate | str:
        claim = self._registry.claim(claim_id)
        if claim is None:
            if not any(is_sealed_by(former, topic, sealed) for former in self._keys_of(claim_id)):
                return "there is no such claim, and it is not sealed by one that was replaced"
            raise RefusedError(
                "this join code is unknown to the server: it has been replaced by a newer one, or "
                "its device was removed"
            )
        if not is_sealed_by(claim.key, topic, sealed):
            return "it is not sealed by the claim's key"
        raw = public_bytes(key)
        if self._is_stolen(claim, raw):
            _log.error(
                "the join code %s of device %r, which has been used, was tried by another machine: "
                "somebody has a copy of it; if %r is not the right machine: "
                "fedtide device revoke %s",
                claim_id,
                claim.device,
                claim.device,
                claim.device,
            )
            raise RefusedError(
                "this join code has been used already, by another machine. If that was not yours, "
                "somebody has stolen the code, and takes part in this device's name: on the "
                f"server, fedtide device revoke {claim.device}, then add it again"
            )
        refusal = self._registry.refusal_of_claim(claim, raw, now_ms)
        if refusal:
            raise RefusedError(refusal)
        pem = self._authority.sign_device(claim.device, key, _time(now_ms))
        certificate = self._registry.admit(claim_id, raw, pem, now_ms)
        if claim.used_at_ms is None:
            _log.info("device %r has joined by %s", claim.device, claim_id)
            self._members_changed()
        return certificate

    def _is_stolen(self, claim: Claim, key: bytes) -> bool:
        if claim.used_at_ms is None:
            return False
        device = self._registry.device(claim.device)
        return device is not None and device.standing == "member" and device.key != key

    def _renew(
        self, name: str, topic: str, sealed: Sealed, key: Ed25519PublicKey, now_ms: int
    ) -> Certificate | str:
        raw = public_bytes(key)
        if not is_sealed_by(raw, topic, sealed):
            return "it is not sealed by the key that it is about"
        device = self._registry.device_of_key(raw)
        if device is None or device.standing != "member":
            holder = self._registry.device(name)
            if raw not in self._keys_of(name) or (holder and holder.standing == "member"):
                return "no device of this name has, or had and was revoked, the key in it"
            raise RefusedError("this device is no member of the federation: it has been revoked")
        if name == device.name:
            self._registry.settle(name, now_ms)
        newest = next(
            (
                certificate
                for certificate in reversed(self._registry.certificates(device.name))
                if certificate.name == device.name and certificate.revoked_at_ms is None
            ),
            None,
        )
        # Who asks twice, as when the answer was lost, gets no second one.
        if newest is not None and device.new_name is None and _is_young(newest, now_ms):
            return newest
        next_name = device.new_name or device.name
        if newest is not None:  # by a clock that is behind, the next one would end before this one
            now_ms = max(now_ms, newest.issued_at_ms)
        pem = self._authority.sign_device(next_name, key, _time(now_ms))
        certificate = self._registry.renew(device.name, pem, now_ms)
        _log.info("device %r has a new certificate, as %r", device.name, next_name)
        self._members_changed()
        return certificate

    def _keys_of(self, name: str) -> set[bytes]:
        """Raw public keys that had a certificate of this name. A refusal to any other key would be
        a false one, sealed by the authority, for whom the name belongs to."""
        return {
            public_bytes(key)
            for certificate in self._registry.certificates()
            if certificate.name == name
            for key in [x509.load_pem_x509_certificate(certificate.pem).public_key()]
            if isinstance(key, Ed25519PublicKey)
        }

    def _say(self, name: str, message: FromRegistrar) -> Said:
        topic, number = self._topics.enrolled(name), self._take_number()
        return Said(topic, seal(topic, encode(message, f"{number}"), self._authority.key, number))


def _key_of(request: bytes) -> Ed25519PublicKey | None:
    """The key that a PKCS#10 request is for, if its holder has signed it."""
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        signed = parsed.is_signature_valid
    except Exception:  # noqa: BLE001 - whatever a parser makes of a stranger's bytes
        return None
    return key if signed and isinstance(key, Ed25519PublicKey) else None


def _is_young(certificate: Certificate, now_ms: int) -> bool:
    """Whether a third of its life is still before it."""
    life_ms = certificate.not_after_ms - certificate.issued_at_ms
    return now_ms - certificate.issued_at_ms < 2 / 3 * life_ms


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
