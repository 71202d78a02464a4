"""A server as it is set up, with real clients and certificates: who gets in, who may do what, and
what a revocation does to somebody who is connected."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import pytest

from demo.brokers import HOST
from fedtide.cli import main
from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError, UnansweredError
from fedtide.identity import load_identity, write_identity
from fedtide.inquiry import Inquiry
from fedtide.join_code import parse_join_code
from fedtide.keys import new_key, public_bytes, save_key
from fedtide.mqtt import MqttTransport
from fedtide.rollover import held_identity
from fedtide.transport import Connected, Delivered, Disconnected, LinkEvent, Received, Will
from registrar.authority import Authority
from registrar.broker_control import broker_process
from registrar.office import now_ms
from tests import bundles
from tests.server import TOPICS, Server, refused, told

DEADLINE_S = 20.0
E = TypeVar("E", bound=LinkEvent)
Protocol = Literal["5", "3.1.1"]


class Client:
    """A link that remembers what came."""

    def __init__(self, access: BrokerConfig, client_id: str, will: Will | None = None) -> None:
        self._queue: queue.Queue[LinkEvent] = queue.Queue()
        self._arrived: list[tuple[str, bytes]] = []
        self.lost: list[Disconnected] = []
        self.link = MqttTransport(access, client_id, self._queue.put, will)

    def next_event(self) -> LinkEvent:
        event = self._queue.get(timeout=DEADLINE_S)
        if isinstance(event, Received):
            self._arrived.append((event.topic, event.payload))
        elif isinstance(event, Disconnected):
            self.lost.append(event)
        return event

    def await_event(self, kind: type[E]) -> E:
        """The next event of this kind."""
        while not isinstance(event := self.next_event(), kind):
            pass
        return event

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> str | None:
        """Publish and wait for the broker's answer: its refusal, if it says one."""
        token = self.link.publish(topic, payload, retain=retain)
        assert token is not None
        while (event := self.await_event(Delivered)).token != token:
            pass
        return event.refused

    def heard(self, end: tuple[str, bytes]) -> list[tuple[str, bytes]]:
        """What arrives up to `end`, which surely does."""
        while end not in self._arrived:
            self.next_event()
        place = self._arrived.index(end)
        arrived, self._arrived = self._arrived[:place], self._arrived[place + 1 :]
        return arrived

    def heard_so_far(self) -> list[tuple[str, bytes]]:
        """What has arrived and was not asked for yet."""
        while not self._queue.empty():
            self.next_event()
        return self._arrived

    def subscribe(self, filters: list[str], sure: str, speaker: Client) -> None:
        """Subscribe, and wait until what is said on `sure`, one of them, arrives."""
        self.link.subscribe(filters)
        deadline_s = time.monotonic() + DEADLINE_S
        while (sure, b"ready") not in self._arrived:
            assert time.monotonic() < deadline_s
            speaker.publish(sure, b"ready")
            with suppress(queue.Empty):
                event = self._queue.get(timeout=0.1)
                if isinstance(event, Received):
                    self._arrived.append((event.topic, event.payload))
        speaker.publish(sure, b"now")
        self.heard((sure, b"now"))


@contextmanager
def connected(access: BrokerConfig, client_id: str, will: Will | None = None) -> Iterator[Client]:
    client = Client(access, client_id, will)
    client.link.start()
    try:
        client.await_event(Connected)
        yield client
    finally:
        client.link.stop()


def is_let_in(access: BrokerConfig) -> bool:
    """Whether the broker takes this client."""
    client = Client(access, "somebody")
    client.link.start()
    try:
        return isinstance(client.next_event(), Connected)
    finally:
        client.link.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def alpha(server: Server) -> BrokerConfig:
    return server.admit("alpha")


@pytest.fixture(scope="module")
def beta(server: Server) -> BrokerConfig:
    return server.admit("beta")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_device_writes_on_its_own_topics_only(
    server: Server, alpha: BrokerConfig, protocol: Protocol
) -> None:
    forbidden = [
        TOPICS.up("beta"),
        TOPICS.presence("beta"),
        TOPICS.enrol("beta"),
        TOPICS.enrolled("alpha"),
        TOPICS.down("alpha"),
        TOPICS.down("beta"),
        TOPICS.chunk("ab" * 32, 0),
        TOPICS.beacon,
        TOPICS.status,
        TOPICS.keys,
        f"{TOPICS.up('alpha')}/more",
        "fedtide/1/other/down/alpha",
        "fedtide/1/other/presence/alpha",
        "fedtide/2/tides/up/alpha",
    ]
    own = [TOPICS.up("alpha"), TOPICS.presence("alpha"), TOPICS.enrol("alpha")]
    access = msgspec.structs.replace(alpha, protocol=protocol)
    with (
        connected(server.coordinator_access, "watch") as watch,
        connected(access, "alpha") as speaks,
    ):
        watch.subscribe(["fedtide/#"], "fedtide/ready", watch)
        refusals = [speaks.publish(topic, b"breach", retain=True) for topic in forbidden]
        for topic in own:
            assert speaks.publish(topic, b"own") is None
        watch.publish("fedtide/end", b"")
        assert watch.heard(("fedtide/end", b"")) == [(topic, b"own") for topic in own]
        if protocol == "5":  # 3.1.1 has no word for it
            assert set(refusals) == {"Not authorized"}
            for topic in ("elsewhere", "$SYS/broker/uptime"):
                assert speaks.publish(topic, b"breach") == "Not authorized"


@pytest.mark.parametrize("wanted", [["#"], ["fedtide/#", "$SYS/#"], ["+/+/+/+/+", "+/+/+/+"]])
def test_a_device_hears_what_is_meant_for_it_only(
    server: Server, alpha: BrokerConfig, wanted: list[str]
) -> None:
    meant = [
        TOPICS.down("alpha"),
        TOPICS.enrolled("alpha"),
        TOPICS.beacon,
        TOPICS.keys,
    ]
    chunk = TOPICS.chunk("ab" * 32, 0)
    others = [
        TOPICS.down("beta"),
        TOPICS.up("beta"),
        TOPICS.up("alpha"),
        TOPICS.presence("beta"),
        TOPICS.enrol("beta"),
        TOPICS.enrolled("beta"),
        TOPICS.status,
        "fedtide/1/other/down/beta",
    ]
    with (
        connected(server.coordinator_access, "speaks") as speaks,
        connected(alpha, "alpha") as listens,
    ):
        speaks.publish(TOPICS.status, b"kept", retain=True)
        listens.subscribe([*wanted, chunk], chunk, speaks)
        for topic in (*others, *meant):
            assert speaks.publish(topic, b"x") is None
        speaks.publish(chunk, b"end")
        heard = [said for said in listens.heard((chunk, b"end")) if said[0] != chunk]
        assert heard == [(topic, b"x") for topic in meant]


def test_a_claim_can_join_and_nothing_else(server: Server) -> None:
    code = parse_join_code(server.add("gamma"))
    access = claim_access(server, code.claim, code.certificate, code.key)
    with (
        connected(server.coordinator_access, "watch") as watch,
        connected(access, code.claim) as claim,
    ):
        watch.subscribe(["fedtide/#"], "fedtide/ready", watch)
        for topic in (
            TOPICS.up(code.claim),
            TOPICS.presence(code.claim),
            TOPICS.up("gamma"),
            TOPICS.enrol("gamma"),
        ):
            assert claim.publish(topic, b"x") == "Not authorized"
        assert claim.publish(TOPICS.enrol(code.claim), b"may") is None
        watch.publish("fedtide/end", b"")
        assert watch.heard(("fedtide/end", b"")) == [(TOPICS.enrol(code.claim), b"may")]
        enrolled = TOPICS.enrolled(code.claim)
        claim.subscribe(["#"], enrolled, watch)
        for topic in (
            TOPICS.chunk("ab" * 32, 0), TOPICS.beacon, TOPICS.keys, TOPICS.down(code.claim),
        ):  # fmt: skip
            watch.publish(topic, b"x")
        watch.publish(enrolled, b"end")
        assert claim.heard((enrolled, b"end")) == []


def claim_access(server: Server, name: str, certificate: bytes, key: bytes) -> BrokerConfig:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
    ca = (server.layout.broker_dir / "ca.pem").read_bytes()
    folder = server.identities / name
    write_identity(folder, Ed25519PrivateKey.from_private_bytes(key), pem, ca, b"")
    return server.access(folder)


def test_the_registrar_hears_requests_and_the_observer_says_nothing(server: Server) -> None:
    registrar = server.access(server.layout.identity("registrar"), local=True)
    observer = server.observer_access
    with connected(registrar, "registrar") as speaks, connected(observer, "o") as watches:
        end = (TOPICS.enrolled("x"), b"end")
        watches.subscribe(["#"], end[0], speaks)
        for topic in (TOPICS.down("beta"), TOPICS.keys, TOPICS.beacon, TOPICS.up("registrar"),
                      TOPICS.chunk("ab" * 32, 0)):  # fmt: skip
            assert speaks.publish(topic, b"x") == "Not authorized"
            assert watches.publish(topic, b"x") == "Not authorized"
        for topic in (TOPICS.up("observer"), TOPICS.presence("observer"), TOPICS.enrol("observer")):
            assert watches.publish(topic, b"x") == "Not authorized"
        speaks.publish(*end)
        assert watches.heard(end) == []


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("who", ["no certificate", "another authority", "expired", "self-signed"])
def test_who_is_not_let_in(server: Server, tmp_path: Path, who: str, local: bool) -> None:
    key, now = new_key(), datetime.now(UTC)
    ours = Authority.open(server.layout.home("registrar") / "authority")
    ca, pem = ours.certificate_pem, None
    (tmp_path / "ca.pem").write_bytes(ca)
    if who == "another authority":
        other = Authority.make(tmp_path / "other", "tides", now)
        pem = other.sign_device("alpha", key.public_key(), now)
    elif who == "expired":
        past = now - timedelta(days=2)
        pem = ours.sign_claim("alpha", key.public_key(), past, past + timedelta(days=1))
    elif who == "self-signed":
        other = Authority.make(tmp_path / "other", "tides", now)
        key, pem = other.key, other.certificate_pem
    access = BrokerConfig(
        host=HOST, port=server.local_port if local else server.port, ca_file=tmp_path / "ca.pem"
    )
    if pem is not None:
        (tmp_path / "certificate.pem").write_bytes(pem)
        save_key(tmp_path / "key.pem", key)
        access = msgspec.structs.replace(
            access,
            certificate_file=tmp_path / "certificate.pem",
            key_file=tmp_path / "key.pem",
        )
    assert not is_let_in(access)
    if who == "expired":
        with Inquiry(access, "test") as inquiry, pytest.raises(UnansweredError) as told:
            inquiry.connect(1.0)
        assert "the broker does not take our certificate: certificate expired" in str(told.value)
        assert "is its certificate revoked or over" in str(told.value)
    named = msgspec.structs.replace(access, username="coordinator")
    assert not is_let_in(named)


def test_who_has_a_certificate_and_is_refused_is_not_asked_about_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path, "--bundle", str(bundles.build("tiny_mlp")))
    conf = server.layout.mosquitto_conf
    conf.write_text(f"{conf.read_text()}\nclientid_prefixes fedtide-\n")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with server:
        for role in ("coordinator", "registrar"):
            said = refused(role, "--config", str(server.layout.etc / f"{role}.toml"))
            assert "refuses the connection" in said
            assert "is its certificate revoked" in said
            assert "password" not in said


def test_a_client_without_tls_or_with_old_tls_gets_nowhere(server: Server) -> None:
    connect = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x0a\x00\x04alph"
    for port in (server.port, server.local_port):
        with socket.create_connection((HOST, port), timeout=DEADLINE_S) as link:
            link.sendall(connect)
            with suppress(ConnectionResetError):
                assert not link.recv(64).startswith(b"\x20")  # CONNACK
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # to use such is a warning
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection((HOST, port), timeout=DEADLINE_S) as link,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(link)


def test_nobody_takes_the_place_of_another(
    server: Server, alpha: BrokerConfig, beta: BrokerConfig
) -> None:
    """A client id is the certificate's name, whatever the client says."""
    with connected(alpha, "alpha") as victim:
        for stolen in ("alpha", "tides/alpha", "tides//coordinator"):
            with connected(beta, stolen) as thief:
                assert thief.publish(TOPICS.up("beta"), b"x") is None
        assert victim.publish(TOPICS.up("alpha"), b"still here") is None
        assert victim.lost == []


def listening(process_id: int) -> set[tuple[str, int]]:
    """Where a process listens by TCP, as the kernel tells: hexadecimal address and port."""
    folder = Path(f"/proc/{process_id}")
    inodes = set()
    for link in (folder / "fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(link))  # noqa: PTH115 - it names no file
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (folder / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add((address, int(port, 16)))
    return found


def test_it_listens_where_it_says_and_nowhere_else(server: Server) -> None:
    assert server.broker.process_id is not None
    assert listening(server.broker.process_id) == {
        ("0100007F", server.port),
        ("0100007F", server.local_port),
    }


def test_secrets_are_readable_by_their_owner_only(server: Server, tmp_path: Path) -> None:
    server.add("paper")
    file = tmp_path / "paper.join"
    server.device("add", "paper", "--out", str(file))
    secret = [file]
    for path in server.layout.root.rglob("*"):
        if path.name in ("key.pem", "registry.db", "registry.db-wal", "registry.db-shm"):
            secret.append(path)
        assert not path.stat().st_mode & 0o022, path  # nobody else writes anything
    assert {path.parent.name for path in secret} >= {"authority", "identity", "broker"}
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    private = re.compile(rb"PRIVATE KEY")
    for path in server.layout.root.rglob("*"):
        if path.is_file() and private.search(path.read_bytes()):
            assert path in secret


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("client_id", ["tides/leaver", "something else"])
def test_a_revocation_holds_at_once_on_an_open_connection(
    server: Server, alpha: BrokerConfig, protocol: Protocol, client_id: str
) -> None:
    leaver = msgspec.structs.replace(server.admit("leaver"), protocol=protocol)
    will = Will(TOPICS.presence("leaver"), b"gone")
    with (
        connected(server.coordinator_access, "watch") as watch,
        connected(alpha, "alpha") as stays,
        connected(leaver, client_id, will) as leaves,
    ):
        watch.subscribe([TOPICS.up("+"), TOPICS.presence("+")], TOPICS.up("leaver"), leaves)
        kept = [topic("leaver") for topic in (TOPICS.up, TOPICS.presence)]
        for topic in (TOPICS.enrol("leaver"), *kept):
            assert leaves.publish(topic, b"kept", retain=True) is None
        watch.heard((kept[-1], b"kept"))

        assert server.device("revoke", "leaver") == "leaver is revoked\n"

        leaves.link.publish(TOPICS.up("leaver"), b"after")
        leaves.await_event(Disconnected)
        leaves.await_event(Disconnected)  # it tries again, in vain
        assert stays.publish(TOPICS.up("alpha"), b"end") is None
        heard = watch.heard((TOPICS.up("alpha"), b"end"))
        assert heard == [(topic, b"") for topic in kept]  # no will, no message: they are cleared
        assert stays.lost == []
        assert not is_let_in(leaver)
    with connected(server.coordinator_access, "late") as late:
        late.link.subscribe(["fedtide/1/+/+/leaver", TOPICS.presence("+")])
        late.publish(TOPICS.presence("x"), b"end")
        assert late.heard((TOPICS.presence("x"), b"end")) == []


def test_who_is_revoked_is_mute_and_deaf_before_the_connection_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The access list alone: nobody ends the connection here."""
    monkeypatch.setattr("registrar.office.end_connections", lambda *_: {})
    with (
        connected(server.coordinator_access, "watch") as watch,
        connected(server.admit("mute"), "mute") as mute,
    ):
        mute.subscribe([TOPICS.down("mute"), TOPICS.beacon], TOPICS.down("mute"), watch)
        watch.subscribe([TOPICS.up("+"), TOPICS.presence("+")], TOPICS.up("mute"), mute)
        server.device("revoke", "mute")
        deadline_s = time.monotonic() + DEADLINE_S
        while mute.publish(TOPICS.up("mute"), b"early") is None:  # until the broker has read it
            assert time.monotonic() < deadline_s
        for topic in (TOPICS.up("mute"), TOPICS.presence("mute"), TOPICS.enrol("mute")):
            assert mute.publish(topic, b"late") == "Not authorized"
        for topic in (TOPICS.down("mute"), TOPICS.beacon):
            watch.publish(topic, b"secret")
        assert mute.lost == []
        watch.publish(TOPICS.up("x"), b"end")
        heard = watch.heard((TOPICS.up("x"), b"end"))
        assert [said for said in heard if said[1] != b"early"] == []
        assert mute.heard_so_far() == []


def test_a_member_of_the_same_name_gets_in_and_the_earlier_one_does_not(server: Server) -> None:
    first = server.admit("again")
    server.device("revoke", "again")
    kept = server.identities / "again"
    kept.rename(server.identities / "earlier")
    first = server.access(server.identities / "earlier")
    second = server.admit("again")
    with connected(second, "again") as client:
        assert client.publish(TOPICS.up("again"), b"x") is None
        assert not is_let_in(first)


def test_a_name_that_was_given_up_is_its_new_holders(server: Server) -> None:
    former = server.admit("porch")
    with connected(server.coordinator_access, "watch") as watch:
        with connected(former, "porch") as mover:
            rename(server, "porch", "garage")
            said = refused("device", "add", "porch", "--config", str(server.layout.registrar_toml))
            assert "has not come under its new name yet" in said
            assert mover.publish(TOPICS.up("porch"), b"still mine") is None
            settle(server, "garage")
            server.device("add", "porch")
            mover.await_event(Disconnected)
        with connected(server.admit("porch"), "porch") as holder:
            watch.subscribe([TOPICS.presence("+")], TOPICS.presence("porch"), holder)
            holder.publish(TOPICS.presence("porch"), b"online", retain=True)
            assert server.device("revoke", "garage") == "garage is revoked\n"
            watch.publish(TOPICS.presence("x"), b"end")
            heard = watch.heard((TOPICS.presence("x"), b"end"))
            assert (TOPICS.presence("porch"), b"") not in heard
            assert holder.publish(TOPICS.up("porch"), b"still here") is None
            assert holder.lost == []


def test_a_name_that_another_gets_is_not_its_former_holders_any_more(server: Server) -> None:
    former, heir = server.admit("attic"), server.admit("shed")
    with connected(former, "attic") as mover:
        rename(server, "attic", "loft")
        settle(server, "loft")
        rename(server, "shed", "attic")
        mover.await_event(Disconnected)
        assert not is_let_in(former)
    assert is_let_in(heir)  # until it has come as "attic"


def settle(server: Server, name: str) -> None:
    """A device has asked under its new name, as the registrar notes it."""
    with server.office() as office:
        office.registry.settle(name, now_ms())


def rename(server: Server, name: str, new_name: str) -> None:
    """Give a member another name, as the registrar does it."""
    server.device("rename", name, new_name)
    key = load_identity(server.identities / name).key.public_key()
    with server.office() as office:
        pem = office.authority.sign_device(new_name, key, datetime.now(UTC))
        office.registry.renew(name, pem, now_ms())


def test_a_session_of_tls_that_was_kept_does_not_outlive_a_revocation(server: Server) -> None:
    """A resumed session shows no certificate."""
    access = server.admit("resumer")
    context = access.tls()
    assert context is not None
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # its sessions are there at once
    address = (HOST, server.port)
    session: ssl.SSLSession | None = None
    reused, deadline_s = False, time.monotonic() + DEADLINE_S
    while not reused:  # the broker may still have to read its lists after the joining
        assert time.monotonic() < deadline_s
        plain = socket.create_connection(address, timeout=DEADLINE_S)
        with context.wrap_socket(plain, server_hostname=HOST, session=session) as link:
            session, reused = link.session, bool(link.session_reused)
    server.device("revoke", "resumer")
    with (
        socket.create_connection(address, timeout=DEADLINE_S) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname=HOST, session=session).recv(1)


def test_a_revocation_while_the_broker_is_down_holds_from_its_start(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with server:
        leaver = server.admit("leaver")
        assert is_let_in(leaver)
    said = server.device("revoke", "leaver")
    assert "leaver is revoked\nBUT the broker does not run here" in said
    assert "hold from its next start" in said
    with server:
        assert not is_let_in(leaver)
        assert server.device("revoke", "leaver") == "leaver was revoked already; done again\n"


def test_a_broker_that_was_started_by_way_of_a_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with Server(tmp_path / "link") as server:
        folder = server.layout.broker_dir
        assert broker_process(folder) == broker_process(folder.resolve())
        assert broker_process(folder) == server.broker.process_id is not None
    assert broker_process(folder) is None


def test_a_claim_that_is_over_is_cut_off(server: Server) -> None:
    """Its certificate lets nobody in again, but a connection may have been left open."""
    code = parse_join_code(server.add("slow"))
    access = claim_access(server, code.claim, code.certificate, code.key)
    with connected(access, code.claim) as claim:
        two_days_later = now_ms() + 2 * 86_400_000
        with server.office() as office:
            assert office.enforce(at_ms=two_days_later) == []
        claim.await_event(Disconnected)
        with server.office() as office:
            office.enforce()


def test_a_claim_that_is_over_and_cannot_be_cut_off_has_no_rights(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [parse_join_code(server.add(name)) for name in ("slow", "slower")]
    codes.sort(key=lambda code: code.claim)
    stuck, other = codes
    accesses = [claim_access(server, c.claim, c.certificate, c.key) for c in codes]
    two_days_later = now_ms() + 2 * 86_400_000

    def inquiry(config: BrokerConfig, purpose: str, client_id: str) -> Inquiry:
        if client_id == stuck.claim:
            raise BrokerError("no broker answered")
        return Inquiry(config, purpose, client_id)

    with connected(accesses[0], stuck.claim) as claim, connected(accesses[1], other.claim) as cut:
        with monkeypatch.context() as patched, server.office() as office:
            patched.setattr("registrar.broker_control.Inquiry", inquiry)
            [undone] = office.enforce(at_ms=two_days_later)
        assert f"open connections of {stuck.claim} are not ended: no broker answered" in undone
        cut.await_event(Disconnected)  # for all that the one before it failed
        for topic in (TOPICS.up(stuck.claim), TOPICS.enrol(stuck.claim)):
            assert claim.publish(topic, b"x") == "Not authorized"
        assert claim.lost == []


def test_one_who_fights_for_the_connection_does_not_stand_for_the_broker(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Fought(Inquiry):
        def __init__(self, config: BrokerConfig, purpose: str, client_id: str) -> None:
            asked.append(client_id)
            self.fought_for = client_id == "fighter"
            super().__init__(config, purpose, client_id)

        def events(self, seconds: float) -> Iterator[LinkEvent]:
            for event in super().events(seconds):
                if not (self.fought_for and isinstance(event, Delivered)):  # its place is taken
                    yield event

    monkeypatch.setattr("registrar.broker_control.Inquiry", Fought)
    monkeypatch.setattr("registrar.broker_control.ANSWER_S", 1.0)
    with connected(server.admit("other"), "other") as other, server.office() as office:
        [undone] = office.enforce(gone=["fighter", "other"])
        other.await_event(Disconnected)
        other.await_event(Connected)
    assert "open connections of fighter are not ended: the broker confirmed nothing" in undone
    assert asked[-2:] == ["fighter", "other"]


def test_an_upgraded_servers_lists_are_read_by_the_running_broker(tmp_path: Path) -> None:
    server = Server(tmp_path)
    acl = server.layout.broker_dir / "acl"
    ours = acl.read_text()
    mine = "user stranger\ntopic write fedtide/1/tides/up/stranger\n"
    acl.write_text(f"{ours}\n{mine}")  # as an older version's that allowed more
    with server:
        key = new_key()
        with server.office() as office:
            pem = office.authority.sign_device("stranger", key.public_key(), datetime.now(UTC))
            ca = office.authority.certificate_pem
        write_identity(server.identities / "stranger", key, pem, ca, b"")
        with connected(server.access(server.identities / "stranger"), "stranger") as stranger:
            assert stranger.publish(TOPICS.up("stranger"), b"x") is None
            said = server.init()
            assert f"made     {acl}\n" in said
            assert acl.read_text() == ours
            stranger.await_event(Disconnected)
            stranger.await_event(Connected)
            assert stranger.publish(TOPICS.up("stranger"), b"x") == "Not authorized"
        assert "everything is there already" in server.init()


def test_a_frozen_broker_is_waited_for_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def inquiry(config: BrokerConfig, purpose: str, client_id: str) -> Inquiry:
        asked.append(client_id)
        return Inquiry(config, purpose, client_id)

    monkeypatch.setattr("registrar.broker_control.Inquiry", inquiry)
    monkeypatch.setattr("registrar.broker_control.ANSWER_S", 0.5)
    process_id = server.broker.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    try:
        with server.office() as office:
            [undone] = office.enforce(gone=["one", "two", "three"])
    finally:
        os.kill(process_id, signal.SIGCONT)
    assert "open connections of one, two, three are not ended: no broker answered" in undone
    assert asked == ["one"]


@pytest.mark.parametrize("name", ["stranger", "join-00000000"])
def test_whom_the_registry_does_not_know_can_neither_say_nor_hear_anything(
    server: Server, name: str
) -> None:
    """As after a restoration: the device has joined, or the claim was made, after the backup."""
    key = new_key()
    with server.office() as office:
        pem = office.authority.sign_device(name, key.public_key(), datetime.now(UTC))
        ca = office.authority.certificate_pem
    write_identity(server.identities / name, key, pem, ca, b"")
    with (
        connected(server.coordinator_access, "watch") as watch,
        connected(server.access(server.identities / name), name) as unknown,
    ):
        unknown.link.subscribe(["#"])
        for topic in (TOPICS.up(name), TOPICS.presence(name), TOPICS.enrol(name)):
            assert unknown.publish(topic, b"x", retain=True) == "Not authorized"
        hearing = (TOPICS.chunk("ab" * 32, 0), TOPICS.beacon, TOPICS.keys)
        for topic in (*hearing, TOPICS.down(name), TOPICS.enrolled(name)):
            assert watch.publish(topic, b"x") is None
        assert unknown.publish(TOPICS.up(name), b"x") == "Not authorized"  # after all of them
        assert unknown.heard_so_far() == []


def test_a_device_whose_certificates_are_lost_is_revoked_by_its_name(server: Server) -> None:
    access = server.admit("ghost")
    with server.office() as office, closing(sqlite3.connect(office.registry.path)) as database:
        database.execute("DELETE FROM certificates WHERE name = 'ghost'")
        database.commit()
    with connected(access, "ghost") as ghost:
        assert ghost.publish(TOPICS.up("ghost"), b"x") is None
        assert server.device("revoke", "ghost") == "ghost is revoked\n"
        ghost.await_event(Disconnected)
        ghost.await_event(Connected)
        assert ghost.publish(TOPICS.up("ghost"), b"x") == "Not authorized"


def test_a_rotated_key_shuts_the_old_one_out(server: Server, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(server.layout.identity("coordinator"), old)
    stolen = server.access(old)
    files = ["--config", str(server.layout.registrar_toml)]
    files += ["--coordinator-config", str(server.layout.coordinator_toml)]
    with connected(stolen, "thief") as thief:
        said = told("server", "rotate-key", *files)
        assert said.startswith("the coordinator has a new key")
        assert "restart the coordinator now" in said
        thief.await_event(Disconnected)
    with held_identity(server.layout.identity("coordinator"), "coordinator") as identity:
        assert public_bytes(identity.key) != public_bytes(load_identity(old).key)
        key_set = identity.key_set()
    assert (server.layout.identity("registrar") / "key_set").read_bytes() == key_set
    assert is_let_in(server.coordinator_access)
    assert not is_let_in(stolen)
    assert not is_let_in(server.access(old, local=True))


def test_the_doctor_knows_a_healthy_server_and_a_sick_one(tmp_path: Path) -> None:
    server = Server(tmp_path)
    config = str(server.layout.registrar_toml)
    with server:
        server.admit("alpha")
        said = told("doctor", config)
        assert "0 problems, 0 warnings" in said
        for expected in ("1 members, 0 invited", "the broker lets the registrar in", "TLS with"):
            assert expected in said
    server.layout.members.write_text("{}")
    said = told("doctor", config, code=8)
    assert "PROBLEM no broker runs" in said
    assert "is not what the registry says: alpha" in said


def test_nobody_who_looks_cuts_a_running_client_off(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device has one connection: the client's, while it runs."""
    access = server.admit("at-work")
    assert access.key_file is not None
    identity = access.key_file.parent
    config = tmp_path / "client.toml"
    config.write_text(
        f'federation = "tides"\nidentity = "{identity}"\nstate_dir = "state"\n'
        f'[broker]\nhost = "{access.host}"\nport = {access.port}\n[data]\npath = "x.npz"\n'
    )
    with held_identity(identity, "client"), connected(access, "at-work") as client:
        main(["doctor", str(config)])
        said = capsys.readouterr().out
        assert "ok      TLS with" in said
        assert "is not tried: the client that runs here has this device's one connection" in said
        assert "journalctl -u fedtide-client" in refused("status", "--once", str(config))
        assert client.publish(TOPICS.up("at-work"), b"still here") is None
        assert client.lost == []
        server.device("revoke", "at-work")
        main(["doctor", str(config)])
        said = capsys.readouterr().out
        assert "PROBLEM the broker does not take our certificate: certificate revoked" in said
    main(["doctor", str(config)])
    assert "is not tried" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "a/b"], "cannot be a device's name"),
        (["add", "\udcff"], "cannot be a device's name"),
        (["add", "coordinator"], "is reserved"),
        (["add", "x", "--expires", "0m"], "is no time"),
        (["add", "x", "--expires", "99d"], "is no time"),
        (["add", "x", "--out", "/nowhere/x"], "no such folder"),
        (["add", "x", "--out", "/etc/hostname"], "is there already"),
        (["revoke", "\udcff"], "there is no device"),
        (["show", "nobody"], "there is no device 'nobody'"),
        (["revoke", "nobody"], "there is no device 'nobody'"),
        (["rename", "nobody", "x"], "there is no device 'nobody'"),
        (["revoke"], "required"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    server: Server, words: list[str], said: str
) -> None:
    assert said in refused("device", *words, "--config", str(server.layout.registrar_toml))


def test_a_server_that_is_none_is_a_message(tmp_path: Path) -> None:
    missing = tmp_path / "registrar.toml"
    assert "this machine is no server" in refused("device", "list", "--config", str(missing))
    server = Server(tmp_path)
    shutil.rmtree(server.layout.home("registrar"))
    said = refused("device", "list", "--config", str(server.layout.registrar_toml))
    assert "there is no registrar's folder" in said
    server.layout.home("registrar").mkdir()
    said = refused("device", "list", "--config", str(server.layout.registrar_toml))
    assert "there is no certificate authority in" in said


def test_lists_and_details_are_tables_and_json(server: Server) -> None:
    server.admit("listed")
    server.add("waiting", "--expires", "2d")
    assert re.search(r"^listed +member +20.* UTC +20.* UTC$", server.device("list"), re.M)
    assert re.search(r"^waiting +invited .* may join until", server.device("list"), re.M)
    devices = json.loads(server.device("list", "--json"))["devices"]
    assert {d["name"]: d["standing"] for d in devices}["listed"] == "member"
    shown = json.loads(server.device("show", "listed", "--json"))
    assert len(shown["key"]) == 64
    assert [c["name"][:5] for c in shown["certificates"]] == ["join-", "liste"]
    told = server.device("show", "listed")
    assert re.search(r"^  join code join-\w+, from 20.* UTC until 20.* UTC$", told, re.M)
    assert re.search(r"^  certificate of listed, from 20.* UTC until 20.* UTC; serial ", told, re.M)
    assert "will be shelved" in server.device("rename", "listed", "shelved")
    assert "will be shelved" in server.device("list")
    assert server.device("rename", "listed", "listed") == "listed keeps its name\n"
    assert server.device("rename", "waiting", "ready") == "waiting is ready\n"
    server.device("revoke", "ready")
    again = r"^ready +revoked .* to take it in again: fedtide device add ready$"
    assert re.search(again, server.device("list"), re.M)
