"""`fedtide server init`: everything, once; what is there stays; what cannot be is said."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.config import CoordinatorConfig
from fedtide import files, units
from fedtide.cli import main
from fedtide.config import load_config
from fedtide.identity import load_identity, read_certificate
from fedtide.key_set import open_key_set
from fedtide.keys import public_bytes
from fedtide.messages import KeySet
from fedtide.topics import Topics
from registrar import installation
from registrar.authority import Authority
from registrar.broker_files import BrokerSettings, access_list, broker_configuration, pid_file
from registrar.config import RegistrarConfig
from registrar.init_command import _listening
from registrar.installation import Wanted, hosts_of
from registrar.layout import Layout
from registrar.server_files import coordinator_toml
from tests.bundles import build
from tests.server import refused, told

HOST = "fed.example.org"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "root", system=False)


def init(layout: Layout, *more: str, hosts: tuple[str, ...] = (HOST,)) -> str:
    return told(
        "server", "init", *hosts, "--federation", "tides", "--root", str(layout.root), *more
    )


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder but the database: mode, a file's last change, content."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_mode,
            0 if path.is_dir() else path.stat().st_mtime_ns,
            b"" if path.is_dir() else path.read_bytes(),
        )
        for path in root.rglob("*")
        if not path.name.startswith("registry.db")
    }


def test_it_is_a_server(layout: Layout) -> None:
    said = init(layout, hosts=(HOST, "192.0.2.7"))
    assert "port 8883 at every address of this machine: devices" in said
    assert "port 8884 at 127.0.0.1" in said
    authority = Authority.open(layout.home("registrar") / "authority")
    certificate = read_certificate(layout.broker_dir / "certificate.pem")
    certificate.verify_directly_issued_by(authority.certificate)
    assert hosts_of(certificate) == {HOST, "192.0.2.7", "127.0.0.1", "localhost"}
    for role in ("coordinator", "registrar", "observer"):
        identity = load_identity(layout.var / role / "identity")
        assert (identity.name, identity.authority) == (role, public_bytes(authority.key))
        key_set = open_key_set(Topics("tides"), identity.key_set(), identity.authority)
        assert isinstance(key_set, KeySet)
        coordinator = load_identity(layout.identity("coordinator"))
        assert key_set == KeySet(1, (public_bytes(coordinator.key),))
    assert layout.members.read_bytes() == b'{"devices":{}}\n'
    assert list(x509.load_pem_x509_crl((layout.broker_dir / "revoked.pem").read_bytes())) == []


def test_the_configurations_can_be_used(layout: Layout) -> None:
    init(layout, "--port", "9883", "--local-port", "9884")
    ours = load_config(layout.coordinator_toml, CoordinatorConfig)
    assert (ours.identity, ours.members) == (layout.identity("coordinator"), layout.members)
    assert (ours.bundle, ours.broker.port) == (layout.bundle, 9884)
    theirs = load_config(layout.registrar_toml, RegistrarConfig)
    assert (theirs.host, theirs.port, theirs.broker.port) == (HOST, 9883, 9884)
    assert theirs.identity == layout.identity("registrar")
    assert theirs.authority == layout.home("registrar") / "authority"
    for path in (layout.coordinator_toml, layout.registrar_toml):
        assert "After a change:\n#   start it again\n" in path.read_text(), "there are no services"
    whole = Layout(Path("/"), system=True)
    assert "#   sudo systemctl restart fedtide-coordinator\n" in coordinator_toml(whole, "tides", 1)
    # What is commented out can be used as well.
    text = layout.coordinator_toml.read_text()
    for line in ("encoding", "[evaluation]", "data", "[metrics]", "listen"):
        text = text.replace(f"# {line}", line)
    tomllib.loads(text)
    layout.coordinator_toml.write_text(text)
    load_config(layout.coordinator_toml, CoordinatorConfig)


def test_a_second_run_changes_nothing_and_says_so(layout: Layout) -> None:
    init(layout)
    before = tree(layout.root)
    assert init(layout).startswith("everything is there already")
    assert tree(layout.root) == before


def test_whatever_the_umask_nobody_else_writes_a_file(layout: Layout) -> None:
    before = os.umask(0)
    try:
        init(layout)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode for path in layout.root.rglob("*") if path.is_file()}
    assert {path.name for path, mode in modes.items() if mode & 0o022} == set()
    assert {mode & 0o077 for path, mode in modes.items() if path.name == "key.pem"} == {0}
    assert not modes[layout.broker_dir / "acl"] & 0o077, "Mosquitto 2.0.20 warns of others"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_access_list_is_the_brokers_as_its_key_is(layout: Layout) -> None:
    """Newer versions of Mosquitto warn of a list that is another user's."""
    init(layout)
    os.chown(layout.broker_dir / "key.pem", 4321, 1234)
    (layout.broker_dir / "acl").unlink()
    init(layout)
    made = (layout.broker_dir / "acl").stat()
    assert (made.st_uid, made.st_gid) == (4321, 1234)


@pytest.mark.parametrize("name", ["coordinator_toml", "registrar_toml", "mosquitto_conf"])
def test_an_edited_file_stays(layout: Layout, name: str) -> None:
    init(layout)
    path: Path = getattr(layout, name)
    edited = path.read_text() + "# mine\n"
    path.write_text(edited)
    init(layout)
    assert path.read_text() == edited


def test_what_was_lost_is_made_again(layout: Layout) -> None:
    init(layout)
    authority = (layout.home("registrar") / "authority" / "key.pem").read_bytes()
    (layout.broker_dir / "certificate.pem").unlink()
    (layout.broker_dir / "acl").unlink()
    (layout.identity("coordinator") / "certificate.pem").unlink()
    said = init(layout, hosts=(HOST, "other.example.org"))
    assert "certificate.pem" in said
    assert "other.example.org" in hosts_of(read_certificate(layout.broker_dir / "certificate.pem"))
    assert (layout.home("registrar") / "authority" / "key.pem").read_bytes() == authority
    identity = load_identity(layout.identity("coordinator"))
    key_set = open_key_set(Topics("tides"), identity.key_set(), identity.authority)
    assert isinstance(key_set, KeySet)
    assert key_set == KeySet(2, (public_bytes(identity.key),))  # devices believe a higher one only
    # The one that was lost may be with somebody: it is shut out.
    crl = x509.load_pem_x509_crl((layout.broker_dir / "revoked.pem").read_bytes())
    assert len(list(crl)) == 1


def test_it_goes_on_wherever_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each file or folder that it makes."""
    real = files.sync_folder
    for stop in range(1, 1000, 2):
        layout = Layout(tmp_path / str(stop), system=False)
        synced = 0

        def cut_off(folder: Path, stop: int = stop) -> None:
            nonlocal synced
            synced += 1
            if synced == stop:
                raise KeyboardInterrupt
            real(folder)

        for module in (files, installation):
            monkeypatch.setattr(module, "sync_folder", cut_off)
        finished = main(init_words(layout)) == 0
        for module in (files, installation):
            monkeypatch.setattr(module, "sync_folder", real)
        if finished:
            break
        init(layout)
        for role in ("coordinator", "registrar", "observer"):
            load_identity(layout.var / role / "identity")
    assert stop > 20


def test_a_bundle_comes_at_once_or_later_and_is_never_replaced(
    layout: Layout, tmp_path: Path
) -> None:
    first, second = build("tiny_mlp"), build("tiny_regression")
    assert "give the coordinator its model" in init(layout)
    assert str(layout.bundle) in init(layout, "--bundle", str(first))
    same = {path.name for path in layout.bundle.iterdir()}
    assert same == {path.name for path in first.iterdir()}
    assert "everything is there" in init(layout, "--bundle", str(first))
    said = refused(*init_words(layout, "--bundle", str(second)))
    assert "has another bundle" in said
    assert "no bundle in" in refused(*init_words(layout, "--bundle", str(tmp_path)))


def init_words(layout: Layout, *more: str) -> list[str]:
    where = ["--federation", "tides", "--root", str(layout.root)]
    return ["server", "init", HOST, *where, *more]


@pytest.mark.parametrize(
    "host",
    ["http://x", "a b", "a:8883", "ü.example.org", "a-", "a..b", "*.example.org", "x" * 64, "a\n",
     "1.2.3.4/8", "300.1.1.1", "1.2.3", f"{'a.' * 126}bcd"],
)  # fmt: skip
def test_what_is_no_host_is_refused(layout: Layout, host: str) -> None:
    said = refused("server", "init", host, "--federation", "tides", "--root", str(layout.root))
    assert "is neither a host name nor an address" in said
    assert not layout.root.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--port", "0"], "is no port"),
        (["--port", "65536"], "is no port"),
        (["--port", "9", "--local-port", "9"], "both 9"),
        (["--bind", "localhost"], "is no address"),
        (["--federation", "a/b"], "cannot be a federation's name"),
        (["--bundle", "/nowhere"], "no bundle in '/nowhere'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    layout: Layout, more: list[str], said: str
) -> None:
    assert said in refused(*init_words(layout, *more))
    assert not layout.root.exists(), "nothing was done before"


def test_of_two_at_once_one_is_told_of_the_other(layout: Layout) -> None:
    with files.locked(layout.root / "run" / "fedtide-server-init", "test"):
        assert "another `fedtide server init`, which is at work" in refused(*init_words(layout))
        assert not layout.etc.exists()
    init(layout)


def test_a_machine_that_is_no_server(layout: Layout) -> None:
    said = refused("device", "list", "--config", str(layout.registrar_toml))
    assert "this machine is no server (`fedtide server init` makes it one)" in said
    assert "relative path" not in said


def test_another_federation_ports_and_hosts_are_refused(layout: Layout) -> None:
    init(layout)
    for more, said in (
        (["--federation", "other"], "federation is tides, not other"),
        (["--port", "9999"], "port is 8883, not 9999"),
        (["--local-port", "9999"], "local port is 8884, not 9999"),
    ):
        assert said in refused(*init_words(layout, *more))
    where = ["--federation", "tides", "--root", str(layout.root)]
    said = refused("server", "init", "other.example.org", *where)
    assert "is not for other.example.org" in said
    assert "to have one signed for other names" in said


def test_a_system_is_set_up_by_root_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "put sudo before" in refused("server", "init", HOST, "--federation", "tides")


def test_the_devices_listener_may_be_at_one_address_or_at_all() -> None:
    settings = BrokerSettings(Path("/f"), Path("/s"), "somebody", 8883, 8884)
    lines = broker_configuration(settings).splitlines()
    assert [line for line in lines if line.startswith("listener")] == [
        "listener 8883",
        "listener 8884 127.0.0.1",
    ]
    for key in (
        "require_certificate true",
        "use_identity_as_username true",
        "crlfile /f/revoked.pem",
    ):
        assert lines.count(key) == 2
    assert "password_file" not in broker_configuration(settings)
    assert pid_file(broker_configuration(settings)) == Path("/s/broker.pid")


def test_every_limit_of_the_recommended_broker_is_there() -> None:
    """One source: what stands below "Site" in deploy/mosquitto/mosquitto.conf."""
    source = (Path(__file__).parents[2] / "deploy" / "mosquitto" / "mosquitto.conf").read_text()
    site, _, limits = source.partition("# --- Who may do what")
    ours = broker_configuration(BrokerSettings(Path("/f"), Path("/s"), "somebody", 8883, 8884))
    active: Callable[[str], list[str]] = lambda text: [  # noqa: E731
        line for line in text.splitlines() if line and not line.startswith("#")
    ]
    assert {line.split()[0] for line in active(site)} == {"listener", "password_file", "acl_file"}
    assert set(active(limits.partition("\n")[2])) <= set(active(ours))
    assert any(line.startswith("max_packet_size") for line in active(ours))


def test_the_access_list_has_rules_of_single_names_in_this_federation_only() -> None:
    text = access_list("tides", ["pi-1"], ["join-1"])
    *_, device, claim = text.split("user ")
    assert claim.splitlines() == [
        "join-1",
        "topic write fedtide/1/tides/enrol/join-1",
        "topic read fedtide/1/tides/enrolled/join-1",
    ]
    assert device.splitlines()[0] == "pi-1"
    for rule in ("write fedtide/1/tides/up/pi-1", "read fedtide/1/tides/blob/#"):
        assert f"topic {rule}" in device.splitlines()
    assert "pattern" not in text
    assert "/+/" not in text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_server_that_root_makes_in_somebodys_folder_is_theirs() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where nobody else gets
        home = Path(name)
        os.chown(home, 65534, 65534)
        layout = Layout(home / "root", system=False)
        init(layout)
        assert {path.stat().st_uid for path in home.rglob("*")} == {65534}
        before = tree(layout.root)
        init(layout)
        assert tree(layout.root) == before


@pytest.mark.parametrize(
    ("there", "wrong", "said"),
    [
        (f'host = "{HOST}"', 'host = "a b"', "host is 'a b', which the broker's certificate"),
        ('federation = "tides"', 'federation = "zz"', "federation is 'zz', and the registrar has"),
    ],
)
def test_a_doctor_sees_what_would_keep_devices_out(
    layout: Layout, there: str, wrong: str, said: str
) -> None:
    init(layout)
    assert said not in told("doctor", str(layout.registrar_toml), code=8)  # no broker runs
    text = layout.registrar_toml.read_text()
    assert there in text
    layout.registrar_toml.write_text(text.replace(there, wrong))
    assert f"PROBLEM {said}" in told("doctor", str(layout.registrar_toml), code=8)


@pytest.mark.parametrize(
    ("answers", "on"),
    [
        ("false", False),
        ("[ $2 = is-active ]", True),
        ("[ $2 = is-enabled ]", True),
    ],
)
def test_debians_broker_is_spoken_of_where_it_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str, on: bool
) -> None:
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\n[ $3 = mosquitto.service ] && {answers}\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(units, "systemd_runs", lambda: True)
    wanted = Wanted("tides", ("fed.example.org",), 8883, 8884, None, None)
    said = _listening(Layout(tmp_path, system=True), wanted)
    assert ("sudo systemctl disable --now mosquitto" in said) == on
    assert "disable" not in _listening(Layout(tmp_path, system=False), wanted)
