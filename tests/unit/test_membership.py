"""Joining and leaving without a server: what is written where, what is kept, what is refused."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pwd
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edge_client.config import ClientConfig
from edge_client.durable import Durable
from edge_client.membership import join_command, joining, layout, leave_command, service
from edge_client.membership.configuration import require_ours, write_configuration
from edge_client.membership.former_name import carry_over
from edge_client.membership.grant import Grant
from edge_client.membership.layout import Layout, layout_of
from edge_client.membership.remains import require_free
from edge_client.saved_session import SavedSession
from fedtide import units
from fedtide.cli import main
from fedtide.config import load_config
from fedtide.errors import BrokerError, ConfigError, StateError
from fedtide.files import locked, remove_tree
from fedtide.identity import load_identity, write_identity
from fedtide.join_code import JoinCode, write_join_code
from fedtide.keys import new_key, save_key
from fedtide.transport import Connected, Received
from registrar.service import NAME_PAUSE_MS, NAMES_MAX, WAITING_MAX, Pace, _Inbox
from tests.identities import NOW, Authority

AUTHORITY = Authority()


def code_of(claim: str = "join-1", host: str = 'server."x"') -> JoinCode:
    key = new_key()
    certificate = x509.load_pem_x509_certificate(AUTHORITY.certify(claim, key.public_key()))
    der = certificate.public_bytes(Encoding.DER)
    ca = AUTHORITY.certificate.public_bytes(Encoding.DER)
    return JoinCode("tides", host, 8883, ca, der, key.private_bytes_raw())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / 'my "data".npz'
    np.savez(path, x=np.zeros((3, 2), np.float32), y=np.zeros(3, np.int64))
    return path


# ---- the configuration ----


def test_the_configuration_is_ready_and_says_where_everything_is(
    tmp_path: Path, data: Path
) -> None:
    place = Layout(tmp_path / "pi/client.toml", tmp_path / "pi", relative=True)
    assert write_configuration(place, code_of(), data)
    config = load_config(place.config, ClientConfig)
    assert config.identity == place.identity
    assert config.state_dir == place.state
    assert config.data.path == data
    assert (config.broker.host, config.broker.port) == ('server."x"', 8883)
    assert config.broker.give_up_ms == 0, "the server may be away for as long as it likes"


def test_a_configuration_without_data_gets_them_later_and_changes_by_hand_stay(
    tmp_path: Path, data: Path
) -> None:
    place = Layout(tmp_path / "pi/client.toml", tmp_path / "pi", relative=True)
    assert not write_configuration(place, code_of(), None)
    place.config.write_text(place.config.read_text() + "# mine\n[training]\nthreads = 2\n")
    assert not write_configuration(place, code_of(), None)
    assert write_configuration(place, code_of(), data)
    config = load_config(place.config, ClientConfig)
    assert config.data.path == data
    assert config.training.threads == 2
    assert "# mine" in place.config.read_text()
    before = place.config.read_text()
    assert write_configuration(place, code_of(), None)
    assert write_configuration(place, code_of(), data)
    assert place.config.read_text() == before
    with pytest.raises(ConfigError, match="names other data already"):
        write_configuration(place, code_of(), tmp_path)


def test_a_configuration_that_lost_its_place_for_data_is_left_alone(
    tmp_path: Path, data: Path
) -> None:
    place = Layout(tmp_path / "client.toml", tmp_path, relative=True)
    place.config.write_text('federation = "tides"\nidentity = "identity"\n')
    with pytest.raises(ConfigError, match="was changed by hand"):
        write_configuration(place, code_of(), data)


@pytest.mark.parametrize("text", ['device = "d"\n', 'identity = "elsewhere"\n'])
def test_a_configuration_of_something_else_is_not_touched(tmp_path: Path, text: str) -> None:
    place = Layout(tmp_path / "client.toml", tmp_path, relative=True)
    place.config.write_text(text)
    with pytest.raises(ConfigError, match="with another identity or with none"):
        require_ours(place)
    for words in (["join", write_join_code(code_of())], ["leave"]):
        assert main(["device", *words, "--folder", str(tmp_path)]) == 2
    assert place.config.read_text() == text


# ---- the place ----


def parsed(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"folder": None, "root": None, "user": "fedtide", **given})


def test_a_service_needs_root_and_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="takes root's rights"):
        layout_of(parsed())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(layout, "_SYSTEMD", tmp_path / "none")
    with pytest.raises(ConfigError, match="does not run systemd"):
        layout_of(parsed())
    monkeypatch.setattr(layout, "_SYSTEMD", tmp_path)
    place = layout_of(parsed(user="pi"))
    assert place == Layout(
        Path("/etc/fedtide/client.toml"), Path("/var/lib/fedtide/client"), "pi", relative=False
    )


# ---- the service ----


class Machine:
    """A machine with systemd, under a folder; what would be done to it."""

    def __init__(self, folder: Path) -> None:
        self.place = Layout(
            folder / "etc/fedtide/client.toml", folder / "var/lib/fedtide/client", "somebody"
        )
        self.done: list[str] = []

    def note(self, what: str) -> Callable[..., None]:
        return lambda *words, **_: self.done.append(" ".join([what, *map(str, words)]))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "machine")
    me = type("", (), {"pw_uid": os.getuid(), "pw_gid": os.getgid(), "pw_name": "somebody"})
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: me)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: me)
    monkeypatch.setattr(service, "make_user", machine.note("useradd"))
    monkeypatch.setattr(service, "is_ours", lambda *_: True)
    monkeypatch.setattr(service, "remove_user", machine.note("userdel"))
    monkeypatch.setattr(units, "check_reachable", machine.note("check"))
    monkeypatch.setattr(units, "start", machine.note("start"))
    monkeypatch.setattr(units, "remove", machine.note("remove"))

    def install(role: units.Role, text: str) -> None:
        machine.done.append(f"install {role}")
        machine.unit = text  # type: ignore[attr-defined]

    monkeypatch.setattr(units, "install", install)
    for module in (join_command, leave_command):
        monkeypatch.setattr(module, "layout_of", lambda _parsed: machine.place)

    def enrol(
        code: JoinCode, _folder: Path, identity: Path, _wait_s: float, _say: Callable[[str], None]
    ) -> Grant:
        machine.done.append(f"enrol {code.claim}")
        key = new_key()
        pem = AUTHORITY.certify("pi-1", key.public_key(), until=NOW.replace(year=NOW.year + 1))
        write_identity(identity, key, pem, AUTHORITY.pem, AUTHORITY.key_set())
        return Grant("pi-1", pem, AUTHORITY.key_set())

    monkeypatch.setattr(join_command, "enrol", enrol)
    monkeypatch.setattr(join_command, "self_test", lambda *_: 0)
    return machine


def test_joining_as_root_makes_user_folders_unit_and_starts_it_in_this_order(
    machine: Machine, data: Path
) -> None:
    words = ["device", "join", write_join_code(code_of()), "--data", str(data)]
    assert main(words) == 0
    home = machine.place.home
    assert machine.done == [
        f"useradd somebody {home}",
        "check somebody",
        "enrol join-1",
        "install client",
        "start client",
    ]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for shared in (home.parent, machine.place.config.parent):
        assert stat.S_IMODE(shared.stat().st_mode) == 0o755, "the service's user must get through"
    assert stat.S_IMODE(machine.place.config.stat().st_mode) == 0o644
    assert f"ReadWritePaths={home}" in machine.unit  # type: ignore[attr-defined]
    machine.done.clear()
    assert main(words) == 0
    assert "enrol join-1" not in machine.done
    assert "start client" in machine.done
    machine.done.clear()
    assert main(["device", "leave"]) == 0
    assert machine.done == ["remove client", f"userdel somebody {home}"]
    assert not home.parent.exists()
    assert not machine.place.config.parent.exists()
    assert data.exists()


def test_without_data_the_service_waits_for_them(
    machine: Machine, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = write_join_code(code_of())
    assert main(["device", "join", code]) == 0
    assert "start client" not in machine.done
    told = capsys.readouterr().err
    assert "it has no data yet" in told
    assert code not in told, "the code is a secret"
    assert main(["device", "join", code, "--data", str(data)]) == 0
    assert "start client" in machine.done


def test_data_that_are_not_there_stop_it_before_anything_is_done(
    machine: Machine, tmp_path: Path
) -> None:
    code = write_join_code(code_of())
    assert main(["device", "join", code, "--data", str(tmp_path / "nowhere")]) == 4
    assert machine.done == []


def test_an_identity_that_is_over_is_replaced(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    key = new_key()
    over = AUTHORITY.certify("pi-1", key.public_key(), until=NOW.replace(year=NOW.year - 1))
    write_identity(machine.place.identity, key, over, AUTHORITY.pem, AUTHORITY.key_set())
    assert main(["device", "join", write_join_code(code_of("join-2"))]) == 0
    assert "enrol join-2" in machine.done
    assert "the certificate of 'pi-1' is over; joining anew" in capsys.readouterr().err


def over_identity(folder: Path, claim: str) -> dict[str, bytes]:
    """Of a device whose certificate this machine's clock calls over; its files."""
    key = new_key()
    over = AUTHORITY.certify("pi-1", key.public_key(), until=NOW.replace(year=NOW.year - 1))
    write_identity(folder, key, over, AUTHORITY.pem, AUTHORITY.key_set())
    (folder / "joined_by").write_text(claim)
    (folder / "former_name").write_text("pi-0")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_identity_that_is_over_stays_until_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock may be what is wrong, and the server may be away."""
    folder = tmp_path / "pi/identity"
    before = over_identity(folder, "join-1")
    words = ["device", "join", write_join_code(code_of("join-2")), "--folder", str(folder.parent)]

    def nobody(*_: object) -> Grant:
        raise BrokerError("nobody answers")

    monkeypatch.setattr(joining._Asking, "ask", nobody)
    assert main(words) == 6
    assert contents(folder) == before

    def grant(asking: joining._Asking, _wait_s: float) -> Grant:
        pem = AUTHORITY.certify("pi-2", asking._key.public_key())
        return Grant("pi-2", pem, AUTHORITY.key_set())

    def cut(*_: object) -> None:
        raise StateError("the power goes")

    monkeypatch.setattr(joining._Asking, "ask", grant)
    monkeypatch.setattr(joining, "write_identity", cut)
    assert main(words) == 7
    assert not folder.exists(), "half of an identity would be nobody's"
    monkeypatch.setattr(joining, "write_identity", write_identity)
    assert main(words) == 0
    assert not (folder.parent / "joining").exists()
    assert load_identity(folder).name == "pi-2"
    assert contents(folder)["joined_by"] == b"join-2"
    assert "former_name" not in contents(folder)


@pytest.mark.parametrize("runs", [False, True])
def test_who_joins_anew_under_another_name_keeps_what_was_saved(
    machine: Machine, runs: bool
) -> None:
    place = machine.place
    over_identity(place.identity, "join-1")
    (place.identity / "former_name").unlink()
    place.state.mkdir()
    durable = Durable(federation="tides", device="pi-0", installation="i", run_id="r")
    SavedSession(place.state, "tides", "pi-0").save(durable)
    with locked(place.state, "client") if runs else nullcontext():
        assert main(["device", "join", write_join_code(code_of("join-2"))]) == 0
    if runs:
        carry_over(load_identity(place.identity), place.state)  # at its next start
    loaded = SavedSession(place.state, "tides", "pi-1").load()
    assert (loaded.device, loaded.installation, loaded.run_id) == ("pi-1", "i", "")
    assert not (place.identity / "former_name").exists()


def test_a_code_that_made_the_identity_that_is_over_is_not_used_again(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Used with another key, it would look stolen."""
    before = over_identity(machine.place.identity, "join-1")
    assert main(["device", "join", write_join_code(code_of("join-1"))]) == 2
    assert "enrol join-1" not in machine.done
    assert contents(machine.place.identity) == before
    told = capsys.readouterr().err
    assert "this machine is device 'pi-1' by this join code, and its certificate was valid" in told
    assert "check this machine's clock" in told


@pytest.mark.parametrize("wait", ["-5", "0", "1.5", "x", "9" * 5000])
def test_a_wait_of_no_time_is_refused(wait: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["device", "join", "code", f"--wait={wait}"])
    assert "is no whole number of seconds from 1" in capsys.readouterr().err


def test_a_device_of_another_federation_stays_that(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    Authority().identity(machine.place.identity, "pi-9")
    assert main(["device", "join", write_join_code(code_of())]) == 2
    assert "is device 'pi-9' of another server's federation already" in capsys.readouterr().err


def test_a_code_that_the_shell_took_apart_is_put_together(machine: Machine) -> None:
    code = write_join_code(code_of())
    assert main(["device", "join", code[:100], code[100:500], code[500:]]) == 0
    assert "enrol join-1" in machine.done


@pytest.mark.parametrize("at", ["/proc/nowhere", "file/pi"])
def test_a_folder_that_cannot_be_made_is_a_message(
    tmp_path: Path, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = Layout(tmp_path / at / "client.toml", tmp_path / at, relative=True)
    words = ["device", "join", write_join_code(code_of()), "--folder", str(place.home)]
    assert main(words) == 7
    told = capsys.readouterr().err
    assert f"cannot use the folder {str(place.home)!r}" in told
    assert "hint: correct the path" in told
    for make in (
        lambda: write_configuration(place, code_of(), None),
        lambda: joining.enrol(code_of(), place.joining, place.identity, 1, print),
    ):
        with pytest.raises(StateError, match="cannot use the folder"):
            make()


def test_two_join_files_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "join", "a.join", "b.join"]) == 2
    assert "by one join code, and these are 2 arguments" in capsys.readouterr().err


# ---- leaving ----


def leave(folder: Path) -> int:
    return main(["device", "leave", "--folder", str(folder)])


def somebodys(folder: Path) -> list[Path]:
    """Files of no device's, in folders that are called as a device's are."""
    files = [folder / name for name in ("state/thesis.txt", "identity/photo", "joining/a", "lock")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("precious")
    return files


@pytest.mark.parametrize("place", ["state", "identity", "joining"])
@pytest.mark.parametrize("flag", ["--folder", "--root"])
def test_joining_takes_no_folder_of_somebodys(
    tmp_path: Path, flag: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path if flag == "--folder" else tmp_path / "var/lib/fedtide/client"
    photo = home / place / "photo"
    photo.parent.mkdir(parents=True)
    photo.write_text("precious")
    words = ["device", "join", write_join_code(code_of()), "--wait", "1", flag, str(tmp_path)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"{str(photo.parent)!r} is there already, and joining has not made it" in told
    assert "move it away" in told
    assert [path for path in home.rglob("*") if path.is_file()] == [photo]


def test_joining_goes_on_with_what_it_has_left_itself(tmp_path: Path) -> None:
    key = new_key()
    for name in ("joining/device.pem", "identity/key.pem"):
        (tmp_path / name).parent.mkdir()
        save_key(tmp_path / name, key)
    (tmp_path / "state").mkdir()
    place = Layout(tmp_path / "client.toml", tmp_path, relative=True)
    require_free(place)
    remove_tree(tmp_path / "identity/key.pem")
    (tmp_path / "identity/.key.pem.new").write_bytes(b"cut sho")
    require_free(place)
    save_key(tmp_path / "identity/key.pem", new_key())
    with pytest.raises(ConfigError, match="joining has not made it"):
        require_free(place)
    remove_tree(tmp_path / "identity")
    AUTHORITY.identity(tmp_path / "identity", "pi-1")
    (tmp_path / "state/session").write_text("of the client")
    require_free(place)


@pytest.mark.parametrize("problems", [0, 2])
def test_a_client_that_cannot_run_yet_is_not_said_to_be_ready(
    machine: Machine,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problems: int,
) -> None:
    monkeypatch.setattr(join_command, "layout_of", lambda _: machine.place._replace(user=None))
    monkeypatch.setattr(join_command, "self_test", lambda *_: problems)
    machine.place.config.parent.mkdir(parents=True)
    assert main(["device", "join", write_join_code(code_of()), "--data", str(data)]) == 0
    said = capsys.readouterr().err
    assert ("Correct what is a PROBLEM above; then, to run" in said) == bool(problems), said


def test_a_folder_of_no_device_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = somebodys(tmp_path / "d")
    server = Authority()
    server.identity(tmp_path / "server/identity", "coordinator")
    (tmp_path / "empty").mkdir()
    for name in ("d", "server", "empty"):
        assert leave(tmp_path / name) == 0
        told = capsys.readouterr().err
        assert f"there is nothing to leave: no device is in {str(tmp_path / name)!r}" in told
    assert main(["device", "leave", "--root", str(tmp_path / "d")]) == 0
    assert [file.read_text() for file in files] == ["precious"] * len(files)
    assert (tmp_path / "server/identity/key.pem").exists()
    assert (tmp_path / "empty").is_dir()


def test_without_a_configuration_goes_what_is_proven_to_be_a_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = tmp_path / "over"
    (over / "state").mkdir(parents=True)
    key = new_key()
    pem = AUTHORITY.certify("pi-1", key.public_key(), until=NOW.replace(year=NOW.year - 1))
    write_identity(over / "identity", key, pem, AUTHORITY.pem, AUTHORITY.key_set())
    assert leave(over) == 0
    assert "device 'pi-1' has left this machine" in capsys.readouterr().err
    assert not over.exists()

    cut = tmp_path / "cut"
    files = somebodys(cut)[:2]
    save_key(cut / "joining/device.pem", key)
    assert leave(cut) == 0
    assert "what was left of a device is removed" in capsys.readouterr().err
    assert not (cut / "joining").exists()
    assert [file.read_text() for file in files] == ["precious"] * 2

    half = tmp_path / "half"
    for path in (half / "joining/device.pem", half / "identity/key.pem"):
        path.parent.mkdir(parents=True)
        save_key(path, key)
    assert leave(half) == 0
    assert not half.exists(), "a key without its certificate is not left behind"


def test_the_configuration_goes_last_for_it_proves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Layout(tmp_path / "pi/client.toml", tmp_path / "pi", relative=True)
    write_configuration(place, code_of(), None)
    AUTHORITY.identity(place.identity, "pi-1")
    place.state.mkdir()
    removed = list[str]()
    monkeypatch.setattr(leave_command, "remove_tree", lambda path: removed.append(path.name))
    assert leave(place.home) == 0
    assert removed == ["state", "identity", "client.toml"]


def test_a_client_that_was_broken_into_does_not_hold_up_its_removal(
    machine: Machine, data: Path, tmp_path: Path
) -> None:
    """Root meets links, a pipe and a folder where files are, and neither follows nor waits."""
    place, elsewhere = machine.place, tmp_path / "elsewhere"
    assert main(["device", "join", write_join_code(code_of()), "--data", str(data)]) == 0
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious")
    place.state.symlink_to(elsewhere)
    place.joining.symlink_to(tmp_path / "nowhere")
    (place.home / "lock").unlink()
    (place.home / "lock").mkdir()
    (place.identity / "key.pem").unlink()
    os.mkfifo(place.identity / "key.pem", 0o600)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(main(["device", "leave"]))
    )
    process.start()
    process.join(timeout=20)
    hung = process.is_alive()
    process.kill()
    assert not hung
    assert process.exitcode == 0
    assert not place.home.exists()
    assert (elsewhere / "file").read_text() == "precious"


# ---- the registrar under a flood ----


def test_who_asks_too_often_is_not_heard_and_others_are() -> None:
    pace = Pace()
    assert pace.allows("a", 0)
    assert not any(pace.allows("a", at_ms) for at_ms in range(1, NAME_PAUSE_MS))
    assert pace.allows("b", 1)
    assert pace.allows("a", NAME_PAUSE_MS)
    for number in range(3 * NAMES_MAX):
        pace.allows(f"name-{number}", 0)
    assert len(pace._heard_at_ms) <= NAMES_MAX


def test_a_flood_is_bounded_and_counted_and_a_signal_gets_through() -> None:
    inbox = _Inbox()
    for _ in range(5 * WAITING_MAX):
        inbox.put(Received("topic", b"x" * 100))
    inbox.put(Connected("MQTT 5", 1))
    assert inbox.dropped == 4 * WAITING_MAX
    taken = [inbox.get(0) for _ in range(WAITING_MAX + 1)]
    assert taken[-1] == Connected("MQTT 5", 1)
