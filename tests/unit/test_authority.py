"""Certificates that OpenSSL takes, in its strictest mode, and a revocation list beside them."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedtide.errors import ConfigError, StateError
from fedtide.keys import new_key, save_key
from registrar.authority import DEVICE_LIFE, Authority, Revoked

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "authority", "tides", datetime.now(UTC))


def loaded(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_an_authority_is_opened_as_it_was_made(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    assert not Authority.exists(folder)
    made = Authority.make(folder, "tides", NOW)
    assert Authority.exists(folder)
    assert Authority.open(folder).certificate == made.certificate
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    years = (made.certificate.not_valid_after_utc - NOW).days / 365.25
    assert 24.9 < years < 25.1


def test_an_authority_is_never_replaced(tmp_path: Path) -> None:
    made = Authority.make(tmp_path, "tides", NOW)
    with pytest.raises(StateError, match="already"):
        Authority.make(tmp_path, "tides", NOW)
    assert Authority.open(tmp_path).certificate == made.certificate


def test_an_authority_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    Authority.make(tmp_path, "tides", NOW)
    (tmp_path / "key.pem").unlink()
    assert not Authority.exists(tmp_path)
    Authority.make(tmp_path, "tides", NOW)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / "key.pem").unlink(),
            r"(?s)there is no certificate .*`state_dir`",
        ),
        (lambda folder: (folder / "key.pem").write_bytes(b"x"), "is no private key"),
        (lambda folder: (folder / "certificate.pem").unlink(), "cannot read the certificate"),
        (lambda folder: (folder / "certificate.pem").write_bytes(b"x"), "is no certificate"),
        (lambda folder: save_key(folder / "key.pem", new_key()), "do not belong together"),
        (lambda folder: (folder / "key.pem").chmod(0o644), "can be read by others"),
    ],
)
def test_a_damaged_authority_is_a_message(tmp_path: Path, damage: object, said: str) -> None:
    Authority.make(tmp_path, "tides", NOW)
    assert callable(damage)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=said):
        Authority.open(tmp_path)


def test_lifetimes(authority: Authority) -> None:
    key = new_key().public_key()
    end = authority.certificate.not_valid_after_utc
    role = loaded(authority.sign_role("coordinator", key))
    assert role.not_valid_after_utc == end
    device = loaded(authority.sign_device("kitchen", key, NOW))
    assert device.not_valid_after_utc == NOW + DEVICE_LIFE
    claim = loaded(authority.sign_claim("join-1", key, NOW, NOW + timedelta(hours=1)))
    assert claim.not_valid_after_utc == NOW + timedelta(hours=1)
    late = loaded(authority.sign_device("kitchen", key, end - timedelta(days=1)))
    assert late.not_valid_after_utc == end  # nothing outlives the authority


def test_what_a_device_must_believe_is_valid_for_a_clock_of_long_ago(authority: Authority) -> None:
    server = loaded(authority.sign_server("broker", new_key().public_key(), ["localhost"]))
    device = loaded(authority.sign_device("kitchen", new_key().public_key(), NOW))
    for certificate in (authority.certificate, server, device):
        assert certificate.not_valid_before_utc.year == 2020


def test_a_revocation_list_names_serials_and_never_expires(authority: Authority) -> None:
    raw = authority.revocation_list([Revoked(7, 1_700_000_000_000)], NOW)
    crl = x509.load_pem_x509_crl(raw)
    assert crl.is_signature_valid(authority.key.public_key())
    assert [entry.serial_number for entry in crl] == [7]
    assert crl.next_update_utc == authority.certificate.not_valid_after_utc


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", ["fed.example.org", "192.0.2.7", "2001:db8::7"])
def test_openssl_takes_the_certificates_at_its_strictest(
    authority: Authority, tmp_path: Path, host: str, version: ssl.TLSVersion
) -> None:
    files = written(authority, tmp_path)
    hosts = ["fed.example.org", "192.0.2.7", "2001:db8::7"]
    files["server"][0].write_bytes(authority.sign_server("broker", files["server"][2], hosts))
    peer = handshake(files, tmp_path / "ca.pem", host, version)
    assert (("commonName", "kitchen"),) in peer["subject"]


def test_openssl_refuses_another_host(authority: Authority, tmp_path: Path) -> None:
    files = written(authority, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(files, tmp_path / "ca.pem", "elsewhere.example.org", ssl.TLSVersion.TLSv1_3)


def written(authority: Authority, folder: Path) -> dict[str, tuple]:  # type: ignore[type-arg]
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    files = {}
    for name in ("server", "client"):
        key = new_key()
        save_key(folder / f"{name}.key", key)
        files[name] = (folder / f"{name}.pem", folder / f"{name}.key", key.public_key())
    files["server"][0].write_bytes(authority.sign_server("broker", files["server"][2], ["a.b"]))
    device = authority.sign_device("kitchen", files["client"][2], datetime.now(UTC))
    files["client"][0].write_bytes(device)
    return files


def handshake(files, ca: Path, host: str, version: ssl.TLSVersion):  # type: ignore[no-untyped-def]
    """Both ends verify each other; what the server knows of the client then."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
    server.load_cert_chain(*map(str, files["server"][:2]))
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(ca))
    client.load_cert_chain(*map(str, files["client"][:2]))
    for context in (server, client):
        context.minimum_version = context.maximum_version = version
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()
    seen: list[object] = []

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as link:
                seen.append(link.getpeercert())
                link.send(b"x")
        except ssl.SSLError as exc:
            seen.append(exc)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=host) as link:
            link.recv(1)
    finally:
        near.close()
        thread.join(timeout=10)
        far.close()
    assert isinstance(seen[0], dict), seen
    return seen[0]
