"""Joining by a real Mosquitto and a real registrar: once, whatever is cut short, by nobody else."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from demo.brokers import child_environment
from demo.local import wait_for_log
from edge_client.membership import join_command
from fedtide.cli import main
from fedtide.failpoints import STEPS, VARIABLE
from fedtide.identity import CA_NAME, load_identity, read_certificate
from fedtide.join_code import parse_join_code, write_join_code
from fedtide.keys import new_key
from fedtide.launch import module_command
from fedtide.messages import Enrol, Enrolled, Envelope, decode, encode
from fedtide.mqtt import MqttTransport
from fedtide.seal import open_sealed, seal
from fedtide.transport import Connected, LinkEvent, Received
from registrar.office import now_ms
from tests.server import DEVICE_PYTHON, FEDERATION, TOPICS, WAIT_S, Server

STEPS_OF_JOINING: list[str] = [step for step in STEPS if step.startswith("join: ")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        running.start_registrar()
        yield running


def join(code: str, folder: Path, *more: str) -> int:
    return main(["device", "join", code, "--folder", str(folder), "--wait", "20", *more])


def test_a_code_makes_a_device_once_and_the_same_command_says_that_it_is_done(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = server.add("pi-1"), tmp_path / "pi"
    assert join(code, folder) == 0
    identity = load_identity(folder / "identity")
    assert identity.name == "pi-1"
    with server.office() as office:
        device = office.registry.device("pi-1")
    assert device is not None
    assert (device.standing, device.key) == ("member", identity.key.public_key().public_bytes_raw())
    assert identity.key_set() == load_identity(server.layout.identity("coordinator")).key_set()
    assert not (folder / "joining").exists(), "the claim's key is not kept"
    capsys.readouterr()
    before = snapshot(folder)
    assert join(code, folder) == 0
    assert "this machine is device 'pi-1' of federation 'tides'" in capsys.readouterr().err
    assert snapshot(folder) == before


def test_secrets_are_their_owners_alone_whatever_the_umask(server: Server, tmp_path: Path) -> None:
    code, folder = server.add("secretive"), tmp_path / "pi"
    words = ("device", "join", code, "--folder", str(folder))
    command = module_command("fedtide", *words, python=DEVICE_PYTHON)
    subprocess.run(command, env=child_environment(), umask=0, timeout=WAIT_S, check=True)
    for path in (folder, folder / "identity", folder / "identity/key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_stolen_code_helps_nobody_unnoticed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the thief comes second or first: who comes second is refused, and it is told why."""
    code = server.add("stolen")
    assert join(code, tmp_path / "first") == 0
    capsys.readouterr()
    assert join(code, tmp_path / "second") == 2
    told = capsys.readouterr().err
    assert "this join code has been used already, by another machine" in told
    assert "somebody has stolen the code, and takes part in this device's name" in told
    assert "fedtide device revoke stolen" in told
    assert not (tmp_path / "second/identity").exists()
    told = "of device 'stolen', which has been used, was tried by another machine"
    wait_for_log(server.registrar, told, WAIT_S)


def test_an_expired_code_is_refused_on_the_device(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = expired_code(server, "late")
    assert join(code, tmp_path / "pi") == 2
    assert "the join code has expired: it was good until" in capsys.readouterr().err


def test_an_expired_code_is_refused_by_the_broker_where_the_clock_is_wrong(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(join_command, "clock_trouble", lambda _code: "the clock has not been set")
    code = expired_code(server, "later")
    assert join(code, tmp_path / "pi") == 6
    told = capsys.readouterr().err
    assert "the clock has not been set; the server will judge the join code" in told
    assert "the broker does not take our certificate: certificate expired" in told
    assert "make a new one on the server: fedtide device add NAME" in told


def test_a_code_of_a_revoked_name_is_refused_and_one_made_afterwards_works(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = server.add("moved")
    assert server.device("revoke", "moved") == "moved is revoked\n"
    assert join(old, tmp_path / "pi") == 6
    told = capsys.readouterr().err
    assert "the broker does not take our certificate: certificate revoked" in told
    assert "the join code has expired, was replaced, or its device was revoked" in told
    new = server.add("moved")
    assert join(old, tmp_path / "pi") == 6
    assert "certificate revoked" in capsys.readouterr().err
    assert join(new, tmp_path / "pi") == 0


def test_another_code_does_not_make_another_device_of_this_one(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pi"
    assert join(server.add("one"), folder) == 0
    assert join(server.add("two"), folder) == 2
    told = capsys.readouterr().err
    assert "this machine is device 'one' already, by another join code" in told
    assert load_identity(folder / "identity").name == "one"


@pytest.mark.parametrize(
    "step",
    [
        # The self-test waits for a coordinator that is not there.
        pytest.param(step, marks=pytest.mark.slow) if step == "join: tested" else step
        for step in STEPS_OF_JOINING
    ],
)
def test_a_power_cut_at_any_step_costs_nothing(server: Server, tmp_path: Path, step: str) -> None:
    device, folder = f"cut-{STEPS_OF_JOINING.index(step)}", tmp_path / "pi"
    code = server.add(device)
    data = tmp_path / "data.npz"
    data.write_bytes(b"")
    words = ["device", "join", code, "--folder", str(folder)]
    words += ["--data", str(data)] if step == "join: tested" else []
    cut = server.run(device, *words, **{VARIABLE: f"{step}=kill"})
    assert cut.wait(WAIT_S) == -signal.SIGKILL, cut.log()
    key = (folder / "joining/device.pem", folder / "identity/key.pem")
    kept = next(path for path in key if path.exists()).read_bytes()
    assert main(words) == 0
    assert (folder / "identity/key.pem").read_bytes() == kept
    assert load_identity(folder / "identity").name == device
    assert not (folder / "joining").exists()
    with server.office() as office:
        own = [c for c in office.registry.certificates(device) if c.name == device]
    assert len(own) == 1, "the claim was used once"


def test_an_answer_that_a_broken_in_broker_forges_is_no_answer(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = server.add("fooled"), tmp_path / "pi"
    assert server.registrar.stop() == 0
    with forger(server):
        assert main(["device", "join", code, "--folder", str(folder), "--wait", "3"]) == 6
    told = capsys.readouterr().err
    assert "an answer that the federation's authority has not sealed is ignored" in told
    assert "3 s have passed, waiting for the registrar's answer" in told
    assert not (folder / "identity").exists()
    server.start_registrar()
    assert join(code, folder) == 0


def test_a_code_of_another_server_is_no_answer_to_this_one(server: Server, tmp_path: Path) -> None:
    """A broker with a certificate of another authority is not spoken to at all."""
    with Server(tmp_path / "other") as other:
        code = parse_join_code(server.add("lured"))
        lured = write_join_code(msgspec.structs.replace(code, port=other.port))
        words = ("device", "join", lured, "--folder", str(tmp_path / "pi"), "--wait", "2")
        process = server.run("lured", *words)
        assert process.wait(WAIT_S) == 6
    assert "certificate verify failed" in process.log()


def test_leaving_removes_what_joining_made_and_nothing_else(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pi"
    assert join(server.add("gone"), folder) == 0
    (folder / "data.npz").write_bytes(b"precious")
    assert main(["device", "leave", "--folder", str(folder)]) == 0
    told = capsys.readouterr().err
    assert "device 'gone' has left this machine" in told
    assert "fedtide device revoke gone" in told
    assert "stays: there are other files in it" in told
    assert [path.name for path in folder.iterdir()] == ["data.npz"]
    shutil.rmtree(folder)
    assert main(["device", "leave", "--folder", str(folder)]) == 0
    assert "there is nothing to leave" in capsys.readouterr().err
    assert not folder.exists()


def test_the_tree_of_a_system_is_made_under_a_root_and_nothing_is_started(
    server: Server, tmp_path: Path
) -> None:
    root = tmp_path / "image"
    assert main(["device", "join", server.add("image"), "--root", str(root)]) == 0
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert "etc/fedtide/client.toml" in files
    assert "var/lib/fedtide/client/identity/certificate.pem" in files
    assert (
        'identity = "../../var/lib/fedtide/client/identity"'
        in (root / "etc/fedtide/client.toml").read_text()
    )
    assert main(["device", "leave", "--root", str(root)]) == 0
    assert [path for path in root.rglob("*") if path.is_file()] == []


def expired_code(server: Server, device: str) -> str:
    """A join code that was good until five seconds ago."""
    code = parse_join_code(server.add(device))
    key = Ed25519PrivateKey.from_private_bytes(code.key)
    over = datetime.now(UTC) - timedelta(seconds=5)
    with server.office() as office:
        pem = office.authority.sign_claim(code.claim, key.public_key(), over, over)
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    return write_join_code(msgspec.structs.replace(code, certificate=der))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def forger(server: Server) -> Iterator[None]:
    """Somebody who may do everything at the broker, and answers each request with a certificate of
    his own making: sealed by a key that is not the authority's, then not sealed at all."""
    identity = load_identity(server.layout.identity("coordinator"))
    issuer = read_certificate(identity.folder / CA_NAME).subject
    other, links = new_key(), list[MqttTransport]()

    def deliver(event: LinkEvent) -> None:
        if isinstance(event, Connected):
            links[0].subscribe([TOPICS.enrol("+")])
        if not isinstance(event, Received) or (sealed := open_sealed(event.payload)) is None:
            return
        envelope = decode(sealed.message)
        assert isinstance(envelope, Envelope)
        assert isinstance(envelope.body, Enrol)
        request = x509.load_der_x509_csr(envelope.body.request)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fooled")]))
            .issuer_name(issuer)
            .public_key(request.public_key())
            .serial_number(1)
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .sign(other, None)
        )
        der = certificate.public_bytes(Encoding.DER)
        answer = encode(Enrolled(envelope.id, "fooled", der, identity.key_set()), "1")
        topic = TOPICS.enrolled(TOPICS.enrolling(event.topic) or "")
        for key in (other, identity.key):
            links[0].publish(topic, seal(topic, answer, key, now_ms()))
        links[0].publish(topic, answer)

    access = server.access(identity.folder)
    links.append(MqttTransport(access, f"{FEDERATION}-forger", deliver))
    links[0].start()
    try:
        yield
    finally:
        links[0].stop()
