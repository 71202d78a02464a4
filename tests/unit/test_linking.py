"""With an identity and without: what a configuration must say, and what both sides make of it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from coordinator import linking as coordinator_linking
from coordinator.config import CoordinatorConfig
from coordinator.marks import Marks
from coordinator.traffic import Traffic
from edge_client.config import ClientConfig
from edge_client.linking import identified, with_name
from fedtide.access import Access, entrance
from fedtide.config import BrokerConfig, convert_config
from fedtide.errors import ConfigError, StateError
from fedtide.identity import write_identity
from fedtide.identity_check import check_identity, check_refused
from fedtide.keys import new_key
from fedtide.mqtt import MqttTransport
from fedtide.picture import Picture
from fedtide.picture_text import as_lines
from fedtide.sealed_transport import SealedTransport
from fedtide.topics import Topics
from fedtide.transport import Will
from tests.identities import NOW, Authority

TOPICS = Topics("tides")
WILL = Will(TOPICS.beacon, b"gone")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def client(tmp_path: Path, **more: object) -> ClientConfig:
    raw = {"federation": "tides", "state_dir": "s", "data": {"path": "d.npz"}, **more}
    return convert_config(raw, ClientConfig, "client.toml", folder=tmp_path)


def coordinator(tmp_path: Path, **more: object) -> CoordinatorConfig:
    rounds = {"cohort_size": 1}
    raw = {"federation": "tides", "bundle": "b", "state_dir": "s", "rounds": rounds, **more}
    return convert_config(raw, CoordinatorConfig, "coordinator.toml", folder=tmp_path)


def connect(config: CoordinatorConfig) -> object:
    with coordinator_linking.identified(config) as identity:
        return coordinator_linking.connect(
            config, identity, Marks({}), Traffic(), lambda _event: None, WILL
        )


# ---- a device ----


def test_a_device_needs_a_name_or_an_identity(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give `device`, or `identity`"):
        client(tmp_path)
    config = client(tmp_path, device="alpha")
    with identified(config) as (same, connect, _):
        assert same == config
        assert isinstance(connect(lambda _event: None, None), MqttTransport)
    assert with_name(config) == config


def test_its_certificate_names_it(tmp_path: Path, authority: Authority) -> None:
    authority.identity(tmp_path / "i", "alpha")
    for given in ({}, {"device": "alpha"}):
        config = client(tmp_path, identity="i", broker={"host": "h", "port": 8883}, **given)
        with identified(config) as (named, connect, _):
            assert named.device == "alpha"
            assert named.broker.certificate_file == tmp_path / "i" / "certificate.pem"
            link = connect(lambda _event: None, None)
            assert isinstance(link, SealedTransport)
            with (
                pytest.raises(StateError, match="in use by another client"),
                identified(config),
            ):
                pass
        assert with_name(config) == named


def test_another_name_is_refused(tmp_path: Path, authority: Authority) -> None:
    authority.identity(tmp_path / "i", "alpha")
    config = client(tmp_path, identity="i", device="beta")
    with pytest.raises(ConfigError, match="device is 'beta', and the identity") as caught:
        with_name(config)
    assert "remove `device`" in str(caught.value)


@pytest.mark.parametrize("name", ["coordinator", "registrar", "observer", "broker", "join-1a2b"])
def test_a_role_or_a_claim_is_no_device(tmp_path: Path, name: str) -> None:
    Authority().identity(tmp_path / "i", name)
    with pytest.raises(ConfigError, match=f"that of '{name}', no device"):
        with_name(client(tmp_path, identity="i"))


def test_two_ways_to_the_broker_are_one_too_many(tmp_path: Path, authority: Authority) -> None:
    authority.identity(tmp_path / "i", "alpha")
    config = client(tmp_path, identity="i", broker={"username": "alpha"})
    with pytest.raises(ConfigError, match=r"broker\.username cannot be given beside `identity`"):
        with_name(config)


# ---- the coordinator ----


def test_the_coordinator_needs_its_members_beside_its_identity(tmp_path: Path) -> None:
    for alone in ({"identity": "i"}, {"members": "m.json"}):
        with pytest.raises(ConfigError, match="give both `identity` and `members`, or neither"):
            coordinator(tmp_path, **alone)
    assert not isinstance(connect(coordinator(tmp_path)), SealedTransport)


def test_with_both_its_link_is_sealed(tmp_path: Path, authority: Authority) -> None:
    authority.identity(tmp_path / "i", "coordinator")
    (tmp_path / "m.json").write_text(json.dumps({"devices": {}}))
    config = coordinator(tmp_path, identity="i", members="m.json")
    assert isinstance(connect(config), SealedTransport)
    (tmp_path / "m.json").unlink()
    with pytest.raises(ConfigError, match="list of members"):
        connect(config)


def test_another_identity_is_refused(tmp_path: Path, authority: Authority) -> None:
    authority.identity(tmp_path / "i", "alpha")
    with pytest.raises(ConfigError, match="that of 'alpha', not of the coordinator"):
        connect(coordinator(tmp_path, identity="i", members="m.json"))


@pytest.mark.parametrize(
    ("key_set", "told"),
    [("of another key", "does not name its key"), ("none", "is missing, or of another federation")],
)
def test_a_coordinator_that_no_device_would_believe_does_not_start(
    tmp_path: Path, authority: Authority, key_set: str, told: str
) -> None:
    identity = authority.identity(tmp_path / "i", "coordinator")
    raw = b"" if key_set == "none" else authority.key_set(2, new_key())
    identity.save_key_set(raw)
    (tmp_path / "m.json").write_text(json.dumps({"devices": {}}))
    with pytest.raises(ConfigError, match=told) as caught:
        connect(coordinator(tmp_path, identity="i", members="m.json"))
    assert "fedtide server rotate-key" in str(caught.value)


# ---- who looks ----


def test_what_can_be_verified_follows_from_the_configuration(
    tmp_path: Path, authority: Authority
) -> None:
    identity, members = tmp_path / "i", tmp_path / "m.json"
    authority.identity(identity, "observer")
    members.write_text(json.dumps({"devices": {}}))
    assert entrance(Access("tides", BrokerConfig(host="h")))[1:] == (None, "nothing")
    assert entrance(Access("tides", identity=identity)).verified == "coordinator"
    assert entrance(Access("tides", identity=identity, members=members)).verified == "everything"
    with pytest.raises(ConfigError, match="no folder"):
        entrance(Access("tides", identity=tmp_path / "no"))


def test_what_is_left_out_is_said() -> None:
    picture = Picture("tides", "coordinator")
    assert list(check_refused(picture.snapshot(0))) == []
    picture.refuse(TOPICS.beacon, "seal broken")
    picture.refuse(TOPICS.presence("alpha"), "seal missing")
    (finding,) = check_refused(picture.snapshot(0))
    assert finding.level == "warning"
    assert "2 messages at the broker have no valid seal" in finding.what
    lines = as_lines(picture.snapshot(0))
    assert lines[1] == (
        "LEFT OUT: 2 messages without a valid seal, the newest on presence/alpha: seal missing"
    )


@pytest.mark.parametrize(("days", "level"), [(200, "ok"), (20, "warning")])
def test_a_certificate_that_is_almost_over_is_told(
    tmp_path: Path, authority: Authority, days: int, level: str
) -> None:
    key = new_key()
    pem = authority.certify("alpha", key.public_key(), until=NOW + timedelta(days=days))
    write_identity(tmp_path, key, pem, authority.pem, b"")
    certificate, keys = check_identity(tmp_path, TOPICS)
    assert certificate.level == level
    assert "the certificate of 'alpha' is valid until" in certificate.what
    assert keys.level == "warning"
    assert "knows no key set" in keys.what
