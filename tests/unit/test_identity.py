"""Keys and identities: what fits together is taken, and everything else is a message."""

from __future__ import annotations

import base64
import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedtide.config import BrokerConfig
from fedtide.errors import ConfigError
from fedtide.files import write_secret
from fedtide.identity import certificate_request, load_identity, write_identity
from fedtide.identity_check import check_identity
from fedtide.keys import key_id, load_key, new_key, public_bytes, save_key
from fedtide.rollover import held_identity
from fedtide.topics import Topics
from tests.identities import NOW, Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_a_key_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    key = new_key()
    save_key(tmp_path / "key.pem", key)
    assert public_bytes(load_key(tmp_path / "key.pem")) == public_bytes(key)
    assert len(key_id(public_bytes(key))) == 8


def test_a_secret_is_its_owners_alone_from_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            modes.append(status.st_mode & 0o777)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    beside = tmp_path / ".secret.new"
    beside.write_bytes(b"left by somebody else")
    beside.chmod(0o666)
    before = os.umask(0)
    try:
        write_secret(tmp_path / "secret", b"1234")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "secret").read_bytes() == b"1234"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    save_key(tmp_path / "key.pem", new_key())
    (tmp_path / "key.pem").chmod(mode)
    with pytest.raises(ConfigError, match=f"can be read by others .mode {mode:03o}.") as caught:
        load_key(tmp_path / "key.pem")
    assert "chmod 600" in str(caught.value)


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(tmp_path / "key.pem", pem)
    with pytest.raises(ConfigError, match="not of Ed25519"):
        load_key(tmp_path / "key.pem")


SHORT = base64.b64encode(bytes.fromhex("302d020100300506032b65700421041f") + bytes(31))
"""31 bytes where a key has 32."""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n",
        b"\xff" * 99,
        b"-----BEGIN PRIVATE KEY-----\n" + SHORT + b"\n-----END PRIVATE KEY-----\n",
    ],
)
def test_what_is_no_key_is_a_message(tmp_path: Path, content: bytes) -> None:
    write_secret(tmp_path / "key.pem", content)
    with pytest.raises(ConfigError, match="is no private key"):
        load_key(tmp_path / "key.pem")


def test_an_identity_comes_back_as_it_was_written(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "deeper" / "identity"
    authority.identity(folder, "kitchen-pi")
    identity = load_identity(folder)
    assert identity.name == "kitchen-pi"
    assert identity.authority == authority.public
    assert identity.key_set() == authority.key_set()
    identity.save_key_set(b"newer")
    assert identity.key_set() == b"newer"
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("missing", ["key.pem", "certificate.pem", "ca.pem"])
def test_a_missing_file_is_named(tmp_path: Path, authority: Authority, missing: str) -> None:
    authority.identity(tmp_path, "alpha")
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        load_identity(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*nowhere") as caught:
        load_identity(tmp_path / "nowhere")
    assert "fedtide device join" in str(caught.value)


@pytest.mark.parametrize("damaged", ["certificate.pem", "ca.pem"])
@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_what_is_no_certificate_is_a_message(
    tmp_path: Path, authority: Authority, damaged: str, content: bytes
) -> None:
    authority.identity(tmp_path, "alpha")
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{damaged}.* is no certificate"):
        load_identity(tmp_path)


def test_a_certificate_of_another_key_is_refused(tmp_path: Path, authority: Authority) -> None:
    authority.identity(tmp_path, "alpha")
    (tmp_path / "certificate.pem").write_bytes(authority.certify("alpha", new_key().public_key()))
    with pytest.raises(ConfigError, match=r"of another key than key\.pem"):
        load_identity(tmp_path)


def test_a_certificate_of_another_authority_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    key = new_key()
    stranger = Authority()
    write_identity(tmp_path, key, stranger.certify("a", key.public_key()), authority.pem, b"")
    with pytest.raises(ConfigError, match="not signed by the authority"):
        load_identity(tmp_path)


def test_a_certificate_that_is_over_is_told_and_left_to_the_broker_to_judge(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    key, topics = new_key(), Topics("tides")
    over = authority.certify("alpha", key.public_key(), until=NOW - timedelta(hours=1))
    write_identity(tmp_path, key, over, authority.pem, b"")
    with held_identity(tmp_path, "client") as identity:
        assert identity.name == "alpha"
    assert "by this machine's clock the certificate of 'alpha' is over since 20" in caplog.text
    found = next(iter(check_identity(tmp_path, topics)))
    assert found.level == "problem"
    assert "timedatectl" in found.todo
    caplog.clear()
    write_identity(tmp_path, key, authority.certify("alpha", key.public_key()), authority.pem, b"")
    with held_identity(tmp_path, "client"):
        assert caplog.text == ""
    assert next(iter(check_identity(tmp_path, topics))).level == "ok"


@pytest.mark.parametrize("name", ["a/b", "../etc", "+", "é"])
def test_a_name_that_is_no_topic_level_is_refused(
    tmp_path: Path, authority: Authority, name: str
) -> None:
    key = new_key()
    pem = authority.certify(name, key.public_key())
    write_identity(tmp_path, key, pem, authority.pem, b"")
    with pytest.raises(ConfigError, match="is of no name that fedtide gives"):
        load_identity(tmp_path)


def test_an_identity_is_the_way_to_the_broker(tmp_path: Path, authority: Authority) -> None:
    identity = authority.identity(tmp_path, "alpha")
    broker = identity.broker(BrokerConfig(host="server", port=8883))
    assert (broker.host, broker.port) == ("server", 8883)
    context = broker.tls()
    assert context is not None
    assert [ca["subject"] for ca in context.get_ca_certs()]
    with pytest.raises(ConfigError, match=r"broker\.username and broker\.ca_file cannot be given"):
        identity.broker(BrokerConfig(username="alpha", ca_file=tmp_path / "ca.pem"))


def test_a_certificate_without_its_key_is_a_message(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(ValueError, match="give both"):
        BrokerConfig(certificate_file=tmp_path / "certificate.pem")
    with pytest.raises(ValueError, match=r"needs broker\.ca_file"):
        BrokerConfig(certificate_file=tmp_path / "a", key_file=tmp_path / "b")
    identity = authority.identity(tmp_path, "alpha")
    (tmp_path / "certificate.pem").write_bytes(authority.certify("b", new_key().public_key()))
    with pytest.raises(ConfigError, match=r"broker\.certificate_file .* cannot be used"):
        identity.broker(BrokerConfig()).tls()


def test_a_request_is_for_the_name_and_signed_by_the_key() -> None:
    key = new_key()
    request = x509.load_der_x509_csr(certificate_request("alpha", key))
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=alpha"
    assert request.public_key() == key.public_key()
