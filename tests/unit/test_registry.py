"""Who may take part: one life of a device after another, each claim once, nothing by halves."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtide.errors import StateError
from fedtide.keys import new_key, public_bytes
from registrar.authority import Authority
from registrar.enforcement import write_access, write_members
from registrar.records import Claim, RefusedError
from registrar.registry import Registry

NOW = datetime.now(UTC)
NOW_MS = round(NOW.timestamp() * 1000)
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"), "tides", NOW)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "state")
    yield registry
    registry.close()


def invite(
    registry: Registry, authority: Authority, device: str, claim_id: str = "join-1"
) -> Claim:
    key = new_key()
    claim = Claim(claim_id, device, public_bytes(key), NOW_MS + HOUR_MS, None)
    expires = NOW + timedelta(hours=1)
    certificate = authority.sign_claim(claim_id, key.public_key(), NOW, expires)
    registry.invite(claim, certificate, NOW_MS)
    return claim


def signed(authority: Authority, name: str, key: Ed25519PrivateKey) -> bytes:
    return authority.sign_device(name, key.public_key(), NOW)


def join(registry: Registry, authority: Authority, device: str) -> Ed25519PrivateKey:
    claim = invite(registry, authority, device, f"join-{device}")
    key = new_key()
    registry.admit(claim.claim_id, public_bytes(key), signed(authority, device, key), NOW_MS)
    return key


def serials(registry: Registry, *, revoked: bool) -> set[int]:
    return {c.serial for c in registry.certificates() if (c.revoked_at_ms is not None) == revoked}


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def test_a_life(registry: Registry, authority: Authority) -> None:
    claim = invite(registry, authority, "kitchen")
    assert registry.claim("join-1") == claim
    device = registry.device("kitchen")
    assert device is not None
    assert (device.standing, device.key) == ("invited", None)
    key = new_key()
    pem = signed(authority, "kitchen", key)
    recorded = registry.admit("join-1", public_bytes(key), pem, NOW_MS + 5)
    assert (recorded.pem, recorded.serial, recorded.name) == (pem, serial(pem), "kitchen")
    assert registry.claims("kitchen")[0].used_at_ms == NOW_MS + 5
    member = registry.device_of_key(public_bytes(key))
    assert member is not None
    assert (member.name, member.standing) == ("kitchen", "member")
    assert registry.revoke("kitchen", NOW_MS + 9).standing == "member"
    assert serial(pem) in serials(registry, revoked=True)
    assert registry.device_of_key(public_bytes(key)) is None
    assert registry.revoke("kitchen", NOW_MS + 10).standing == "revoked"
    again = invite(registry, authority, "kitchen", "join-2")
    assert registry.claims("kitchen") == [again]
    assert serials(registry, revoked=False) == {registry.certificates("kitchen")[-1].serial}


def test_a_claim_is_used_once(registry: Registry, authority: Authority) -> None:
    invite(registry, authority, "kitchen")
    first, second = new_key(), new_key()
    pem = signed(authority, "kitchen", first)
    recorded = registry.admit("join-1", public_bytes(first), pem, NOW_MS)
    with pytest.raises(RefusedError, match="used already"):
        registry.admit("join-1", public_bytes(second), signed(authority, "kitchen", second), NOW_MS)
    # The one who used it may have missed the answer: it is the same one again.
    other = signed(authority, "kitchen", first)
    assert registry.admit("join-1", public_bytes(first), other, NOW_MS + HOUR_MS) == recorded
    assert len(registry.certificates("kitchen")) == 2  # the claim's and the device's


def test_of_two_at_the_same_moment_one_gets_in(tmp_path: Path, authority: Authority) -> None:
    registry = Registry(tmp_path)
    invite(registry, authority, "kitchen")
    outcomes: list[str] = []
    gate = threading.Barrier(4)

    def compete() -> None:
        mine, key = Registry(tmp_path), new_key()
        pem = signed(authority, "kitchen", key)
        gate.wait()
        try:
            mine.admit("join-1", public_bytes(key), pem, NOW_MS)
            outcomes.append("in")
        except RefusedError:
            outcomes.append("refused")
        mine.close()

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry.close()
    assert sorted(outcomes) == ["in", "refused", "refused", "refused"]


@pytest.mark.parametrize("late_ms", [0, 1, HOUR_MS])
def test_an_expired_claim_is_refused(
    registry: Registry, authority: Authority, late_ms: int
) -> None:
    claim = invite(registry, authority, "kitchen")
    key = new_key()
    with pytest.raises(RefusedError, match="expired"):
        registry.admit(
            "join-1",
            public_bytes(key),
            signed(authority, "kitchen", key),
            claim.expires_at_ms + late_ms,
        )
    device = registry.device("kitchen")
    assert device is not None
    assert device.standing == "invited"


def test_an_unknown_a_replaced_and_a_revoked_claim_are_refused(
    registry: Registry, authority: Authority
) -> None:
    key = new_key()
    pem = signed(authority, "kitchen", key)
    invite(registry, authority, "kitchen", "join-1")
    invite(registry, authority, "kitchen", "join-2")
    for claim_id in ("join-1", "join-9"):
        with pytest.raises(RefusedError, match="unknown here"):
            registry.admit(claim_id, public_bytes(key), pem, NOW_MS)
    registry.revoke("kitchen", NOW_MS)
    with pytest.raises(RefusedError, match="has been revoked"):
        registry.admit("join-2", public_bytes(key), pem, NOW_MS)
    assert serials(registry, revoked=False) == set()


def test_a_key_belongs_to_one_device(registry: Registry, authority: Authority) -> None:
    key = join(registry, authority, "kitchen")
    invite(registry, authority, "garden")
    with pytest.raises(RefusedError, match="'kitchen'"):
        registry.admit("join-1", public_bytes(key), signed(authority, "garden", key), NOW_MS)


def test_a_certificate_of_another_name_is_refused(registry: Registry, authority: Authority) -> None:
    invite(registry, authority, "kitchen")
    key = new_key()
    with pytest.raises(RefusedError, match="cannot have a certificate of 'garden'"):
        registry.admit("join-1", public_bytes(key), signed(authority, "garden", key), NOW_MS)
    assert registry.device_of_key(public_bytes(key)) is None  # nothing by halves
    member = join(registry, authority, "garden")
    with pytest.raises(RefusedError, match="cannot have a certificate of 'kitchen'"):
        registry.renew("garden", signed(authority, "kitchen", member), NOW_MS)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        "a/b",
        "a+",
        "#",
        "é",
        "x" * 65,
        "coordinator",
        "observer",
        "join-1",
        "doctor-1",
        "a\n",
    ],
)
def test_a_name_that_no_device_can_have_is_refused(
    registry: Registry, authority: Authority, name: str
) -> None:
    with pytest.raises(RefusedError, match=r"cannot be|reserved"):
        invite(registry, authority, name)
    join(registry, authority, "kitchen")
    with pytest.raises(RefusedError, match=r"cannot be|reserved"):
        registry.rename("kitchen", name, NOW_MS)


def test_names_of_the_servers_own_are_listed(registry: Registry, authority: Authority) -> None:
    with pytest.raises(RefusedError) as caught:
        invite(registry, authority, "broker")
    assert caught.value.hint == (
        "broker, coordinator, observer, registrar, join-..., doctor-... are the server's own"
    )


def test_a_member_is_not_invited_again(registry: Registry, authority: Authority) -> None:
    join(registry, authority, "kitchen")
    with pytest.raises(RefusedError, match=r"there is a device 'kitchen' already"):
        invite(registry, authority, "kitchen")


def test_renewal_keeps_the_earlier_certificate_until_both_are_revoked(
    registry: Registry, authority: Authority
) -> None:
    key = join(registry, authority, "kitchen")
    registry.renew("kitchen", signed(authority, "kitchen", key), NOW_MS)
    assert len(serials(registry, revoked=False)) == 3
    registry.revoke("kitchen", NOW_MS)
    assert len(serials(registry, revoked=True)) == 3
    with pytest.raises(RefusedError, match="no member"):
        registry.renew("kitchen", signed(authority, "kitchen", key), NOW_MS)


def test_a_member_gets_its_new_name_with_its_next_certificate(
    registry: Registry, authority: Authority
) -> None:
    key = join(registry, authority, "kitchen")
    registry.rename("kitchen", "larder", NOW_MS + 1)
    kitchen = registry.device("kitchen")
    assert kitchen is not None
    assert (kitchen.new_name, kitchen.changed_at_ms) == ("larder", NOW_MS), "it is as it was"
    for taken in ("kitchen", "larder"):
        with pytest.raises(RefusedError, match=r"already|is taken"):
            invite(registry, authority, taken)
    registry.renew("kitchen", signed(authority, "kitchen", key), NOW_MS)  # of the old name still
    registry.renew("kitchen", signed(authority, "larder", key), NOW_MS)
    assert registry.device("kitchen") is None
    larder = registry.device_of_key(public_bytes(key))
    assert larder is not None
    assert (larder.name, larder.standing, larder.new_name) == ("larder", "member", None)
    # The old name is free again when the device has come under the new one.
    other = join(registry, authority, "cellar")
    for taking in (invite, lambda *_: registry.rename("cellar", "kitchen", NOW_MS)):
        with pytest.raises(RefusedError, match="'larder' was 'kitchen', and has not come"):
            taking(registry, authority, "kitchen")
    before = serials(registry, revoked=False)
    registry.settle("larder", NOW_MS)
    ended = {c.name for c in registry.certificates() if c.serial in before and c.revoked_at_ms}
    assert ended == {"kitchen"}
    registry.rename("cellar", "kitchen", NOW_MS)
    registry.renew("cellar", signed(authority, "kitchen", other), NOW_MS)
    assert registry.revoke("larder", NOW_MS).standing == "member"


def test_renaming(registry: Registry, authority: Authority) -> None:
    invite(registry, authority, "a")
    registry.rename("a", "b", NOW_MS)
    claim = registry.claim("join-1")
    assert claim is not None
    assert claim.device == "b"  # nobody carries the old name yet
    join(registry, authority, "c")
    with pytest.raises(RefusedError, match="is taken"):
        registry.rename("c", "b", NOW_MS)
    with pytest.raises(RefusedError, match=r"no device 'cc'; did you mean 'c'"):
        registry.rename("cc", "d", NOW_MS)
    registry.rename("c", "d", NOW_MS)
    with pytest.raises(RefusedError, match="is taken"):
        registry.rename("b", "d", NOW_MS)
    registry.rename("c", "c", NOW_MS)  # not after all
    registry.rename("b", "d", NOW_MS)
    registry.revoke("c", NOW_MS)
    with pytest.raises(RefusedError, match="is revoked"):
        registry.rename("c", "e", NOW_MS)


def test_a_clock_that_was_ahead_once_takes_no_revocation_back(
    registry: Registry, authority: Authority, tmp_path: Path
) -> None:
    """Neither the registry nor the broker's lists forget what was over by that clock."""
    join(registry, authority, "lost")
    registry.revoke("lost", NOW_MS)
    revoked = serials(registry, revoked=True)
    assert len(revoked) == 2
    key = join(registry, authority, "kitchen")
    ahead_ms = NOW_MS + 2 * 365 * 86_400_000
    registry.renew("kitchen", signed(authority, "kitchen", key), ahead_ms)
    (tmp_path / "key.pem").touch()  # the broker's
    write_access(registry, authority, tmp_path, "tides", ahead_ms)
    assert serials(registry, revoked=True) == revoked
    listed = x509.load_pem_x509_crl((tmp_path / "revoked.pem").read_bytes())
    assert {entry.serial_number for entry in listed} == revoked


def test_everything_is_there_after_a_restart_and_for_the_owner_only(
    tmp_path: Path, authority: Authority
) -> None:
    registry = Registry(tmp_path / "state")
    join(registry, authority, "kitchen")
    known = registry.devices(), registry.claims(), registry.certificates()
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    registry.close()
    registry = Registry(tmp_path / "state")
    assert (registry.devices(), registry.claims(), registry.certificates()) == known
    registry.close()


def test_a_foreign_or_damaged_file_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"no database, and long enough to be one" * 10)
    with pytest.raises(StateError, match="cannot be used"):
        Registry(tmp_path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(StateError, match="schema 9, expected 1"):
        Registry(tmp_path)


def test_the_members_are_written_for_everybody_to_read(
    registry: Registry, authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "members.json"
    umask = os.umask(0o077)  # a service's
    try:
        write_members(registry, path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert json.loads(path.read_bytes()) == {"devices": {}}
    key = join(registry, authority, "kitchen")
    join(registry, authority, "garden")
    invite(registry, authority, "cellar")
    registry.revoke("garden", NOW_MS)
    write_members(registry, path)
    assert json.loads(path.read_bytes()) == {
        "devices": {"kitchen": {"key": public_bytes(key).hex()}}
    }
    before = path.stat()
    write_members(registry, path)
    assert path.stat() == before
