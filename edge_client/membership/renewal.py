"""A running device keeps its certificate: it asks the registrar at its start and once a day.

The registrar decides: it has a clock that is right, which a device need not have. It answers with
the certificate that the device has, or with a newer one when two thirds of its life are over, or
with one of another name when the operator has renamed the device. A newer one replaces the old as
a file, and the link connects anew; the training knows nothing of it.

Since under a new name the old one's round is lost, the question is put when nothing is at work, if
such a moment comes within the hour. But where no coordinator answers, it may be because the device
has another name already, and a power cut took that away: then half a minute is enough.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable

from cryptography import x509

from edge_client.membership.grant import Grant, grant_of
from fedtide.errors import FedtideError
from fedtide.failpoints import reach
from fedtide.files import write_atomically
from fedtide.identity import (
    CA_NAME,
    CERTIFICATE_NAME,
    Identity,
    certificate_request,
    read_certificate,
)
from fedtide.messages import Enrol, Enrolled, Envelope, Refusal, Renamed, decode, encode
from fedtide.topics import Topics
from fedtide.transport import Connected, Disconnected, LinkEvent, Received, Transport

_log = logging.getLogger(__name__)

DAY_MS = 86_400_000
SPREAD_MS = 10_000
"""After a start: a fleet whose power comes back does not ask at once."""
RETRY_MS, RETRY_MS_MAX = 5_000, 3_600_000
"""Until the same question is put again; doubles."""
PATIENCE_MS, UNANSWERED_PATIENCE_MS = 3_600_000, 30_000
"""How long a question waits for a moment in which nothing is at work; where nobody answers."""
FORMER_NAME = "former_name"
"""File in the identity's folder, while state of the name before has not been carried over."""


class Renewal:
    """See the module. Times are those of a clock that only goes forward."""

    def __init__(
        self,
        identity: Identity,
        topics: Topics,
        link: Transport,
        reconnect: Callable[[], None],
        at_ms: int,
    ) -> None:
        """Raises ConfigError: the authority's certificate cannot be read."""
        self._identity = identity
        self._serial = identity.certificate.serial_number
        self._ca = read_certificate(identity.folder / CA_NAME)
        self._topics = topics
        self._link = link
        self._reconnect = reconnect
        self._connected = False
        self._patience_ms = 0
        self._due_at_ms = at_ms + random.randrange(SPREAD_MS)  # noqa: S311
        self._asked_at_ms: int | None = None
        self._retry_ms = RETRY_MS
        self._id = ""
        self.new_name = ""
        """Set when the certificate of another name is here: from now on that is ours."""

    def deadline_at_ms(self) -> int | None:
        """When to call `time_reached`, whatever else happens."""
        if not self._connected:
            return None
        if self._asked_at_ms is not None:
            return self._asked_at_ms + self._retry_ms
        return self._due_at_ms + self._patience_ms

    def link_event(self, event: LinkEvent, at_ms: int) -> None:
        """Something happened on the link."""
        match event:
            case Connected():
                self._connected = True
                self._link.subscribe([self._topics.enrolled(self._identity.name)])
            case Disconnected():
                self._connected = False
            case Received(topic, payload) if topic == self._topics.enrolled(self._identity.name):
                self._heard(payload, at_ms)
            case _:
                pass

    def time_reached(self, at_ms: int, *, idle: bool, welcomed: bool) -> None:
        """Let time pass. `idle`: nothing is at work, and no update is on its way; `welcomed`: the
        coordinator answers."""
        if not self._connected:
            return
        if self._asked_at_ms is None:
            patience_ms = PATIENCE_MS if welcomed else UNANSWERED_PATIENCE_MS
            self._patience_ms = 0 if idle else patience_ms
            if at_ms < self._due_at_ms + self._patience_ms:
                return
            self._id, self._retry_ms = secrets.token_hex(8), RETRY_MS
        elif at_ms < self._asked_at_ms + self._retry_ms:
            return
        else:
            self._retry_ms = min(2 * self._retry_ms, RETRY_MS_MAX)
        self._asked_at_ms = at_ms
        request = certificate_request(self._identity.name, self._identity.key)
        topic = self._topics.enrol(self._identity.name)
        self._link.publish(topic, encode(Enrol(request), self._id))

    def _heard(self, payload: bytes, at_ms: int) -> None:
        envelope = decode(payload)
        body = envelope.body if isinstance(envelope, Envelope) else None
        if isinstance(body, Renamed) and body.name != self._identity.name:
            _log.info("the operator gives this device the name %r", body.name)
            self._due_at_ms = min(self._due_at_ms, at_ms)
        elif isinstance(body, Refusal) and body.regarding == self._id != "":
            _log.error("the registrar refuses another certificate: %s", body.reason)
            self._answered(at_ms)
        elif isinstance(body, Enrolled) and body.regarding == self._id != "":
            grant = grant_of(body, self._topics, self._identity.key, self._ca)
            if isinstance(grant, Grant):
                self._answered(at_ms)
                self._take(grant)
            else:  # a certificate of another's: the registrar's answer to us is still to come
                _log.error("the registrar's answer is not taken: %s", grant)

    def _answered(self, at_ms: int) -> None:
        self._asked_at_ms, self._id = None, ""
        self._due_at_ms = at_ms + DAY_MS

    def _take(self, grant: Grant) -> None:
        certificate = x509.load_pem_x509_certificate(grant.certificate)
        if certificate.serial_number == self._serial:
            return
        folder, renamed = self._identity.folder, grant.name != self._identity.name
        try:
            if renamed:
                write_atomically(folder / FORMER_NAME, self._identity.name.encode())
                reach("renewal: former name kept")
            write_atomically(folder / CERTIFICATE_NAME, grant.certificate)
            reach("renewal: certificate stored")
            self._serial = certificate.serial_number
            if renamed:
                _log.info("this device is %r from now on", grant.name)
                self.new_name = grant.name
                return
            until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            _log.info("a new certificate, valid until %s; connecting with it", until)
            self._reconnect()
        except FedtideError as exc:
            _log.error("the new certificate cannot be used: %s; asked for again", exc.args[0])
            self._due_at_ms -= DAY_MS - RETRY_MS_MAX
