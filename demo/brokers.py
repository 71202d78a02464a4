"""A real broker for as long as a test or a demo needs it: Mosquitto, or amqtt from PyPI.

Mosquitto runs with the configuration that we recommend to everybody (deploy/mosquitto, also part
of this package), moved to a free port of the loopback and a folder of its own. Nobody is
anonymous; the passwords are made here and lie in files that only this user can read.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from fedtide.config import BrokerConfig
from fedtide.errors import BrokerError, ConfigError
from fedtide.launch import module_command

Kind = Literal["mosquitto", "amqtt"]

HOST = "127.0.0.1"
COORDINATOR, OBSERVER = "coordinator", "observer"
"""User names with rights of their own in the ACL; every other user is a device."""
START_S = 20.0
"""Longest time a broker may take to answer."""
_SITE_KEYS = ("listener", "password_file", "acl_file")
"""What the recommended configuration says about its own site, replaced here."""
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/local/sbin")
"""Where a broker may lie outside a user's PATH."""


def mosquitto_path() -> str | None:
    """The mosquitto binary of this machine, if any."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    return shutil.which("mosquitto", path=path)


def mosquitto_version() -> str:
    """What `mosquitto -h` says of itself first."""
    said = subprocess.run(
        [mosquitto_path() or "mosquitto", "-h"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_S,
        check=False,  # help is an error to it
    ).stdout
    return next(iter(said.splitlines()), "").removeprefix("mosquitto version ").strip()


def find_broker(kind: str = "auto") -> Kind:
    """Which broker can run here; `auto` prefers Mosquitto.

    Raises:
        ConfigError: the one asked for, or any, is not installed.
    """
    if kind in ("auto", "mosquitto") and mosquitto_path() is not None:
        return "mosquitto"
    if kind in ("auto", "amqtt") and importlib.util.find_spec("amqtt") is not None:
        return "amqtt"
    raise ConfigError(
        "no MQTT broker is installed" if kind == "auto" else f"{kind} is not installed",
        hint="apt install mosquitto" if kind == "mosquitto" else "pip install 'fedtide[demo]'",
    )


class Broker:
    """One broker process and the accounts it knows. A context manager that starts and stops it."""

    def __init__(self, kind: Kind, folder: Path, users: Iterable[str], port: int = 0) -> None:
        """`folder` gets configuration, passwords, log and store; port 0 means a free one."""
        self.kind = kind
        self.folder = folder
        self.port = port or free_port()
        self.log_path = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._passwords = {
            user: secrets.token_urlsafe(32) for user in dict.fromkeys((*users, OBSERVER))
        }
        for user, password in self._passwords.items():
            write_private(self.password_file(user), password + "\n")
        self._command = self._prepare_mosquitto() if kind == "mosquitto" else self._prepare_amqtt()

    def password_file(self, user: str) -> Path:
        """File that holds one user's password."""
        return self.folder / f"{user}.password"

    def access(self, user: str, *, port: int = 0) -> BrokerConfig:
        """How `user` reaches this broker; `port` where a proxy stands in between."""
        return BrokerConfig(
            host=HOST,
            port=port or self.port,
            username=user,
            password_file=self.password_file(user),
            # amqtt does not refuse MQTT 5, it falls silent: no need to find that out each time.
            protocol="auto" if self.kind == "mosquitto" else "3.1.1",
            reconnect_ms_max=1_000,
        )

    @property
    def process_id(self) -> int | None:
        """Its process, while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            BrokerError: it ended, or did not answer in time; with the end of its log.
        """
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                self.kill()
                what = "did not answer" if code is None else f"ended with code {code}"
                raise BrokerError(f"{self.kind} on port {self.port} {what}:\n{self.log_tail()}")
            time.sleep(0.02)  # between two looks at a port that cannot call us

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def log_tail(self, lines: int = 20) -> str:
        """The end of its log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        """Whether an MQTT client is let in: CONNECT by hand, because nothing may linger."""
        user = OBSERVER.encode()
        password = self._passwords[OBSERVER].encode()
        body = b"\x00\x04MQTT\x04\xc2\x00\x0a"  # 3.1.1, name and password, clean, keep-alive 10 s
        for text in (b"probe", user, password):
            body += len(text).to_bytes(2, "big") + text
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as link:
                link.sendall(b"\x10" + bytes([len(body)]) + body)
                answer = link.recv(4)
                link.sendall(b"\xe0\x00")
        except OSError:
            return False
        return answer == b"\x20\x02\x00\x00"

    def _prepare_mosquitto(self) -> list[str]:
        binary = mosquitto_path()
        if binary is None:
            raise ConfigError("mosquitto is not installed", hint="apt install mosquitto")
        here = Path(__file__).parent
        lines = [
            line
            for line in (here / "mosquitto.conf").read_text().splitlines()
            if line.split(" ")[0] not in _SITE_KEYS
        ]
        store = self.folder / "store"
        store.mkdir(exist_ok=True, mode=0o700)
        passwords, acl = self.folder / "passwords", self.folder / "acl"
        write_private(
            passwords, "".join(_password_line(*entry) for entry in self._passwords.items())
        )
        write_private(acl, (here / "mosquitto.acl").read_text())
        lines += [
            f"listener {self.port} {HOST}",
            f"password_file {passwords}",
            f"acl_file {acl}",
            f"persistence_location {store}/",
            "log_dest stderr",
            # Started by root it would become `mosquitto`, who cannot read this folder.
            f"user {pwd.getpwuid(os.getuid()).pw_name}",
        ]
        config = self.folder / "mosquitto.conf"
        write_private(config, "\n".join(lines) + "\n")
        return [binary, "-c", str(config)]

    def _prepare_amqtt(self) -> list[str]:
        digests = {
            user: hashlib.sha256(password.encode()).hexdigest()
            for user, password in self._passwords.items()
        }
        config = self.folder / "amqtt.json"
        write_private(config, json.dumps({"port": self.port, "passwords": digests}))
        return module_command("demo.amqtt_broker", str(config))


def free_port() -> int:
    """A TCP port of the loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _password_line(user: str, password: str) -> str:
    """One line of Mosquitto's password file, as `mosquitto_passwd` writes it.

    PBKDF2-HMAC-SHA512 with Mosquitto's own 101 rounds: the passwords are 256 random bits, and
    many rounds would hold up the broker's only thread at every connection.
    """
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"{user}:$7$101${_base64(salt)}${_base64(digest)}\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def child_environment() -> dict[str, str]:
    """Ours; in a source tree, with the tree on the path of a child that runs elsewhere.

    Not where this package is installed: our site-packages would hide those of another Python.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").exists():
        return dict(os.environ)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else str(root)}
